# One image for every process: `docker run IMAGE up`, `… serve user-service`, `… doctor`. Settings come from the
# environment (docs/configuration.md); nothing secret is in it. Servers bring their database to the schema themselves.

FROM python:3.11-slim AS build
WORKDIR /build
# The locked uv takes out of the lock what a running server needs, and what builds the wheel: the versions and hashes
# stay the locked ones, and nothing unpinned is ever fetched.
COPY requirements.lock pyproject.toml ./
RUN awk '/^[a-z]/ {on = /^uv==/} on' requirements.lock > uv.txt \
    && pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore --require-hashes -r uv.txt \
    && cp requirements.lock tools.txt \
    && echo hatchling | uv pip compile - --universal --python-version 3.11 --generate-hashes --quiet -o tools.txt \
    && cp requirements.lock runtime.txt \
    && uv pip compile pyproject.toml --extra otel --extra mongodb --universal --python-version 3.11 --generate-hashes --quiet -o runtime.txt \
    && uv pip install --system --no-cache --require-hashes -r tools.txt \
    && uv venv --python /usr/local/bin/python --quiet /opt/bedplate \
    && uv pip install --python /opt/bedplate/bin/python --no-cache --compile-bytecode --require-hashes -r runtime.txt
COPY README.md LICENSE ./
COPY src src
RUN uv build --wheel --offline --no-build-isolation --python /usr/local/bin/python --out-dir dist \
    && uv pip install --python /opt/bedplate/bin/python --offline --no-deps --compile-bytecode dist/*.whl

FROM python:3.11-slim
# A number, because Kubernetes cannot tell from a name that it is not root. The root file system may be read-only:
# only the data folder (of the embedded database and of files) and /tmp are written to.
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bedplate \
    && install -d -o bedplate -g bedplate -m 0700 /var/lib/bedplate
COPY --from=build /opt/bedplate /opt/bedplate
ENV PATH=/opt/bedplate/bin:$PATH PYTHONDONTWRITEBYTECODE=1 API_HOST=0.0.0.0 BEDPLATE_DATA=/var/lib/bedplate
USER 10001:10001
VOLUME /var/lib/bedplate
EXPOSE 8000
# It drains for ten seconds: wait fifteen before killing it.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=4); c.request('GET', sys.argv[2]); sys.exit(c.getresponse().status != 200)", "8000", "/"]
ENTRYPOINT ["bedplate"]
CMD ["up"]
