"""People's cards: stored at the processor, known here by brand and last digits; one of a person's is the default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime

from lava_proxy.billing.charges import Charges
from lava_proxy.domain.errors import NotFound
from lava_proxy.payments.processor import CardDetails, CardMethod, Event, Processor, Setup, no_processor
from lava_proxy.stores.charge_store import ChargeStore, PaymentMethod


class Cards:
    """Adds, lists and removes cards. Raises UpstreamError when the processor cannot answer, CallerError for what it refuses."""

    def __init__(self, store: ChargeStore, processor: Processor | None, charges: Charges, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._optional_processor = processor
        self._charges = charges
        self._clock = clock

    @property
    def _processor(self) -> Processor:
        if self._optional_processor is None:
            raise no_processor()
        return self._optional_processor

    async def begin(self, person_id: str) -> Setup:
        """Start to store a card: the client finishes with the setup's secret, then `finish` or a notice stores it."""
        return await self._processor.create_setup(await self._charges.customer_ref(person_id))

    async def add(self, person_id: str, card: CardDetails) -> PaymentMethod:
        """Store a typed card, where the processor takes one (the sandbox); it becomes the default."""
        setup = await self.begin(person_id)
        return await self._save(person_id, await self._processor.add_card(setup, card))

    async def finish(self, person_id: str, setup_ref: str) -> PaymentMethod | None:
        """The card of a setup, now the default; None while its client has not finished. NotFound for another person's."""
        setup = await self._processor.setup(setup_ref)
        if setup.customer_ref != await self._charges.customer_ref(person_id):
            raise NotFound("No such setup of this person.")
        if not setup.is_done or setup.method_ref is None:
            return None
        return await self._save(person_id, await self._processor.attach_method(setup.customer_ref, setup.method_ref))

    async def list(self, person_id: str) -> list[PaymentMethod]:
        """A person's cards, the default first."""
        return await self._store.payment_methods(person_id, self._processor.name)

    async def set_default(self, person_id: str, payment_method_id: str) -> None:
        """Charge this card from now on; what was held off is tried again with it."""
        card = await self._own(person_id, payment_method_id)
        await self._processor.set_default_method(await self._charges.customer_ref(person_id), card.processor_ref)
        await self._store.set_default(person_id, self._processor.name, payment_method_id)
        await self._charges.card_changed(person_id)

    async def remove(self, person_id: str, payment_method_id: str) -> None:
        card = await self._own(person_id, payment_method_id)
        await self._processor.detach_method(card.processor_ref)
        await self._store.detach(payment_method_id, self._clock())

    async def take_event(self, event: Event) -> None:
        """A notice about a setup or a card: bring ours in line with what the processor says now. Any number of times."""
        if event.subject == "setup":
            setup = await self._processor.setup(event.object_ref)
            person_id = await self._store.person_of_customer(self._processor.name, setup.customer_ref)
            if person_id is not None and setup.is_done and setup.method_ref is not None:
                if await self._store.payment_method_by_ref(self._processor.name, setup.method_ref) is None:
                    await self.finish(person_id, setup.setup_ref)
        elif event.subject == "payment_method":
            known = await self._store.payment_method_by_ref(self._processor.name, event.object_ref)
            if known is None:
                return
            found = await self._processor.method(event.object_ref)
            if found is None:
                await self._store.detach(known.payment_method_id, self._clock())
            else:
                await self._store.save_payment_method(
                    known.person_id, self._processor.name, asdict(found), self._clock(), make_default=False
                )

    async def _save(self, person_id: str, card: CardMethod) -> PaymentMethod:
        saved = await self._store.save_payment_method(
            person_id, self._processor.name, asdict(card), self._clock(), make_default=True
        )
        if card.customer_ref is not None:
            await self._processor.set_default_method(card.customer_ref, card.processor_ref)
        await self._charges.card_changed(person_id)
        return saved

    async def _own(self, person_id: str, payment_method_id: str) -> PaymentMethod:
        card = await self._store.payment_method(payment_method_id)
        if card is None or card.person_id != person_id:
            raise NotFound(f"No payment method {payment_method_id!r}.")
        return card
