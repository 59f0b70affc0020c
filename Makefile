# The menu. `make demo` and `make test` each work alone on a fresh clone.
#
#   make demo    install what is missing, build, run three nodes here      (ARGS="--fresh" for an empty cluster)
#   make test    install what is missing, check everything, run all tests
#   make check   fast and read-only: format, lints, unit tests, house rules
#   make fix     format, and let clippy repair what it can
#   make soak    the end-to-end tests again and again, with long freezes   (ROUNDS=5)
#   make bench   all figures, built with optimisation                      (ARGS="3 node-kill" for a few)
#   make setup   install what is missing, nothing else

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
CARGO ?= cargo
ROUNDS ?= 5
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-rust setup-postgresql setup-clients setup-patroni demo test check fix soak bench

help:
	@sed -n 's/^#   //p' Makefile

setup: setup-rust setup-postgresql

# Rust is never installed behind anybody's back: it belongs to a person's home.
setup-rust:
	@command -v $(CARGO) >/dev/null || { \
	  echo "Rust is missing. Install it with rustup (https://rustup.rs):"; \
	  echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"; \
	  echo "and run make again."; exit 1; }
	@command -v cc >/dev/null || { \
	  if command -v apt-get >/dev/null; then \
	    echo "installing a linker (gcc)"; \
	    as_root() { if [ "$$(id -u)" = 0 ]; then "$$@"; else sudo "$$@"; fi; }; \
	    as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y gcc libc6-dev; \
	  else \
	    echo "A C linker is missing. macOS: xcode-select --install; Fedora: dnf install gcc; Arch: pacman -S gcc."; exit 1; \
	  fi; }

# Debian's package would create and start a cluster of its own on port 5432, which nobody here needs: it is told not to.
setup-postgresql:
	@if command -v postgres >/dev/null \
	  || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null \
	  || compgen -G '/usr/pgsql-*/bin/postgres' >/dev/null \
	  || compgen -G '/opt/homebrew/opt/postgresql@*/bin/postgres' >/dev/null \
	  || compgen -G '/usr/local/opt/postgresql@*/bin/postgres' >/dev/null; then exit 0; fi; \
	if command -v apt-get >/dev/null; then \
	  as_root() { \
	    if [ "$$(id -u)" = 0 ]; then "$$@"; \
	    elif command -v sudo >/dev/null; then sudo "$$@"; \
	    else echo "PostgreSQL is missing. Install it as root: apt-get install postgresql"; exit 1; fi; }; \
	  set -e; \
	  echo "installing PostgreSQL (no default cluster is created)"; \
	  as_root mkdir -p /etc/postgresql-common/createcluster.d; \
	  echo "create_main_cluster = false" | as_root tee /etc/postgresql-common/createcluster.d/howdah.conf >/dev/null; \
	  as_root apt-get update -q; \
	  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y postgresql; \
	elif [ "$$(uname)" = Darwin ]; then \
	  echo "PostgreSQL is missing. Install it with Homebrew: brew install postgresql@17"; exit 1; \
	else \
	  echo "PostgreSQL is missing. Install PostgreSQL 13 to 18 by your package manager,"; \
	  echo "for example: dnf install postgresql-server, pacman -S postgresql, zypper install postgresql-server"; exit 1; \
	fi

# What the tests drive: etcd's own command line, and a real Patroni. The latter goes into the target directory, for
# the Python of the system: PostgreSQL's user, who runs it, may not look into a person's home.
PATRONI := target/clients/patroni
setup-clients: setup-patroni
	@if command -v etcdctl >/dev/null; then exit 0; fi; \
	if command -v apt-get >/dev/null; then \
	  as_root() { \
	    if [ "$$(id -u)" = 0 ]; then "$$@"; \
	    elif command -v sudo >/dev/null; then sudo "$$@"; \
	    else echo "etcdctl is missing. Install it as root: apt-get install etcd-client"; exit 1; fi; }; \
	  set -e; \
	  echo "installing etcdctl, for the tests"; \
	  as_root apt-get update -q; \
	  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y etcd-client; \
	else \
	  echo "etcdctl is missing. The tests need etcd's client, version 3.4 or newer (macOS: brew install etcd)."; exit 1; \
	fi

setup-patroni:
	@if [ -e $(PATRONI)/.complete ]; then exit 0; fi; \
	if ! python3 -m pip --version >/dev/null 2>&1; then \
	  if command -v apt-get >/dev/null; then \
	    as_root() { \
	      if [ "$$(id -u)" = 0 ]; then "$$@"; \
	      elif command -v sudo >/dev/null; then sudo "$$@"; \
	      else echo "pip is missing. Install it as root: apt-get install python3-pip"; exit 1; fi; }; \
	    echo "installing pip, for the tests"; \
	    as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y python3-pip || exit 1; \
	  else \
	    echo "python3 with pip is missing; the tests drive a real Patroni with it."; exit 1; \
	  fi; \
	fi; \
	set -e; \
	echo "installing Patroni 4.1.0 into $(PATRONI), for the tests"; \
	rm -rf $(PATRONI); mkdir -p $(PATRONI); \
	system=python3; [ ! -x /usr/bin/python3 ] || system=/usr/bin/python3; \
	version=$$($$system -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	install="python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --upgrade --target $(PATRONI)"; \
	$$install 'ydiff>=1.2,<1.5,!=1.4.0,!=1.4.1' 'python-etcd>=0.4.3,<0.5'; \
	$$install --only-binary=:all: --python-version $$version patroni==4.1.0 dnspython click prettytable wcwidth psutil \
	  python-dateutil six PyYAML urllib3 psycopg2-binary; \
	touch $(PATRONI)/.complete

demo: setup
	$(CARGO) build --release --locked
	@exec $(CARGO) run --release --locked --quiet -- dev $(ARGS)

# One profile and one set of features for everything, so that nothing is compiled twice. The tests come last:
# their summary is what is read. The end-to-end tests take turns by themselves.
test: setup setup-clients
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --no-deps --locked --document-private-items --lib
	$(CARGO) test --locked --no-fail-fast --package howdah --package base2histogram

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	$(CARGO) test --locked --lib --test tidy

fix:
	$(CARGO) fmt
	$(CARGO) clippy --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt

soak: setup
	$(CARGO) test --locked --test e2e --no-run
	@for round in $$(seq $(ROUNDS)); do \
	  echo "soak: round $$round of $(ROUNDS)"; \
	  SOAK=1 $(CARGO) test --locked --quiet --test e2e -- --test-threads=1 || exit 1; \
	done

bench: setup
	$(CARGO) bench --locked --bench '*' -- $(ARGS)
