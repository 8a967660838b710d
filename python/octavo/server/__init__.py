"""The HTTP server: Falcon resources under gunicorn with gevent workers."""
