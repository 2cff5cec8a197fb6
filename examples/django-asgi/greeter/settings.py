"""Settings from the environment. No database, no templates: nothing here is stored."""

import os
import secrets

DEBUG = os.environ.get("DEBUG") == "1"
# Nothing that this project signs outlives a request, so each process may have its own key. In yours, set SECRET_KEY.
SECRET_KEY = os.environ.get("SECRET_KEY") or secrets.token_urlsafe(50)
# `web` is the name of the service in compose.yaml.
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1],web").split(",")

ROOT_URLCONF = "greeter.urls"
ASGI_APPLICATION = "greeter.asgi.application"
# Both work without a thread. A single middleware that does not would send every request through a thread.
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
USE_TZ = True
