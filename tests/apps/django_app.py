"""A Django application in one file, with the features of a real one: forms, uploads, sessions, streams, files, a database."""

import hashlib
import time

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import FileResponse, Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not a secret",
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    MIDDLEWARE=[
        "django.middleware.common.CommonMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.gzip.GZipMiddleware",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DATA_UPLOAD_MAX_MEMORY_SIZE=10 << 20,
)
django.setup()


def index(request):
    return HttpResponse("Hello from Django")


def form(request):
    return JsonResponse({"name": request.POST["name"], "all": request.POST.getlist("all")})


def upload(request):
    file = request.FILES["file"]
    return JsonResponse({"name": file.name, "sha256": hashlib.sha256(file.read()).hexdigest()})


def raw(request):
    return JsonResponse({"length": len(request.body)})


def count(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return HttpResponse(str(request.session["count"]))


def stream(request):
    def lines():
        # sqlite3 raises if a connection is used in a thread other than the one that opened it.
        with connection.cursor() as cursor:
            for number in range(50):
                if number % 10 == 0:
                    time.sleep(0.01)  # long enough for the thread to lose the loop
                cursor.execute("select %s", [number])
                yield f"{request.GET['word']} {cursor.fetchone()[0]}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def file(request):
    return FileResponse(open(request.GET["path"], "rb"))  # the response closes it


def missing(request):
    raise Http404


def error(request):
    raise RuntimeError("raised in a view")


urlpatterns = [
    path("", index),
    *(path(view.__name__, view) for view in (form, upload, raw, count, stream, file, missing, error)),
]

app = get_wsgi_application()
