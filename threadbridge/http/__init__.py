"""HTTP/1.1: connections, requests and the heads of responses. Loop side."""
