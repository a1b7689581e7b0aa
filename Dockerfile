# An image for one run: docker run IMAGE -m bn_research.train --config=... --workdir=...
#
#   docker build --build-arg DEVICE=cpu|cuda|tpu --tag bn_research .
#
# docs/clusters.md has the commands of schedulers that use the image.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

# After FROM, because an argument before FROM is unknown below.
ARG DEVICE=cpu

WORKDIR /opt/bn_research

# The packages come before the code: a change of the code then downloads
# nothing. The installation of the project needs a package, which is empty here.
COPY pyproject.toml requirements.txt README.md LICENSE ./
RUN case "$DEVICE" in \
      cpu) extra='' ;; \
      cuda | tpu) extra="[$DEVICE]" ;; \
      *) echo "error: DEVICE=$DEVICE; give cpu, cuda or tpu" >&2; exit 2 ;; \
    esac \
    && mkdir bn_research \
    && touch bn_research/__init__.py \
    && python -m pip install --no-cache-dir --disable-pip-version-check \
      -r requirements.txt -c requirements.txt -e ".$extra"

COPY bn_research bn_research
COPY configs configs

# The user has a home folder, because compiled programs and datasets are cached
# in ~/.cache. The workdir of a run is a volume that this user may write to.
RUN useradd --create-home --uid 1000 researcher
# A cluster that gives devices to root alone needs RUN_AS=root.
ARG RUN_AS=researcher
USER ${RUN_AS}

# {arguments} of `sweep --launch` begin with `-m bn_research.train`.
ENTRYPOINT ["python"]
CMD ["-m", "bn_research.train", "--help"]
