# The environment of `make install`, for machines without Python 3.11. The repository itself is mounted, not copied:
#
#   docker build -t synthmri .
#   docker run --rm -it -v "$PWD":/synthmri -u "$(id -u):$(id -g)" synthmri make repro
FROM python:3.11-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends git make \
 && rm -rf /var/lib/apt/lists/* \
 && git config --system --add safe.directory /synthmri
ENV VENV=/opt/venv PIP_NO_CACHE_DIR=1 HOME=/tmp USER=synthmri
WORKDIR /synthmri
COPY pyproject.toml constraints.txt Makefile README.md ./
COPY synthmri synthmri
COPY stages stages
COPY commands commands
COPY reader_study reader_study
RUN make install && chmod -R a+rwX /opt/venv
CMD ["make", "repro"]
