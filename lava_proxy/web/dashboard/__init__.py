"""The merchant's dashboard: one module a family of pages, all behind a session.

Read first: `frame.py` (sessions, the guard, how a page or a part of one is rendered), `forms.py` (what people typed, checked),
`templates/dashboard/macros.html` (tables, fields, badges). A page that changes something writes the audit log; what cannot be
undone asks first (`data-confirm` on its button). `site.py` composes them.
"""
