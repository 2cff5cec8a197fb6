"""Settings from the environment. No database: nothing here is stored."""

import os
import secrets
from pathlib import Path

DEBUG = os.environ.get("DEBUG") == "1"
# Nothing that this project signs outlives a request, so each process may have its own key. In yours, set SECRET_KEY.
SECRET_KEY = os.environ.get("SECRET_KEY") or secrets.token_urlsafe(50)
# `web` is the name of the service in compose.yaml.
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1],web").split(",")

ROOT_URLCONF = "greeter.urls"
WSGI_APPLICATION = "greeter.wsgi.application"
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [Path(__file__).parent / "templates"]},
]
USE_TZ = True
