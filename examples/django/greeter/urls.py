"""The view of each path."""

from django.urls import path

from . import views

urlpatterns = [
    path("", views.index),
    path("hello", views.hello),
    path("json", views.greeting),
    path("echo", views.echo),
    path("sleep", views.sleep),
    path("bytes", views.some_bytes),
    path("stream", views.stream),
    path("upload", views.upload),
]
