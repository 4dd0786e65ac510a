"""lava-proxy: a self-hosted gateway that sells AI calls.

Floors, highest first; a room imports only rooms below it, and rooms on one floor do not know each other:

    cli                                   commands
    app                                   composition roots: who is built, who knows whom, start and stop
    gateway | api | web | workers         front doors, independent of each other
    billing                               the only room where money moves
    stores | notify | payments            Redis and Postgres; messages to the world outside; card processors
    settings                              frozen values; the only reader of the environment and config/*.toml
    providers                             pure: what each provider family says and costs
    client                                beside them: the Python client, which needs nothing of the server
    wire                                  pure: bytes <-> values
    domain | telemetry | tasks            values and rules; every metric; the one place that starts tasks

The life of one call (gateway/exchange.py tells it top to bottom): the head names a target and a credential; the credential
becomes a grant (who pays, by which meter); the body says the most the call can use; `reserve` holds that much in Redis or
refuses; the provider's bytes are relayed untouched while a meter reads a copy; `settle` turns the usage into a debit, closes
the hold and writes the outbox in one script; the flusher copies the outbox to Postgres.

The report of a call that went elsewhere (billing/reporting.py) is one script call: check, debit and dedupe.
"""
