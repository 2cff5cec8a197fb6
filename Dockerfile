# Serves what is in /app. One's own app is two lines: FROM epollard, COPY . .
ARG PYTHON_VERSION=3.14
FROM python:${PYTHON_VERSION}-slim

# What a child image installs goes to /packages: pip falls back to it, as the image's user may not write elsewhere.
ENV HOST=0.0.0.0 EPOLLARD_ADMIN=0.0.0.0:8001 PYTHONUNBUFFERED=1 PYTHONUSERBASE=/packages PATH=/packages/bin:$PATH

RUN --mount=type=bind,target=/mnt,rw pip install --no-cache-dir --root-user-action=ignore /mnt \
 && install --directory --owner=1000 --group=0 --mode=0775 /packages

WORKDIR /app
USER 1000:0
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
# The start period is a little above --boot-timeout, after which the server itself reports what hangs.
HEALTHCHECK --interval=10s --timeout=5s --start-period=125s CMD ["epollardctl", "healthcheck"]
ENTRYPOINT ["epollard"]
