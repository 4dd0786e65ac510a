"""The data plane: HTTP/1.1 in, HTTP/1.1 out, charged in between. exchange.py tells the story; it holds no authority."""
