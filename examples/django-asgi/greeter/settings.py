"""Settings from the environment. No database, no templates: nothing here keeps anything."""

import os
import secrets

DEBUG = os.environ.get("DEBUG") == "1"
# Nothing that this project signs outlives a request, so a key for each process will do. Yours should come from outside.
SECRET_KEY = os.environ.get("SECRET_KEY") or secrets.token_urlsafe(50)
# `web` is the service's name in compose.yaml.
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1],web").split(",")

ROOT_URLCONF = "greeter.urls"
ASGI_APPLICATION = "greeter.asgi.application"
# Both can do without a thread; one middleware that cannot takes every request through one.
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
USE_TZ = True
