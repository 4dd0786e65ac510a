"""Pages for people: guides, the dashboard, the hosted checkout. Server-rendered, no build step, nothing from other hosts.

Read first: `pages.py` (how a page is rendered and protected), `assets.py` (static files). A page never moves money itself: it calls
`billing`. `web` and `api` are front doors beside each other; what both show comes from rooms below.
"""
