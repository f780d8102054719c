# pg_changefeed: builds the extension's library and the gateway program, and
# runs the project's own commands. `make help` lists them.
#
#   make                            build with the newest PostgreSQL 15-18 found
#   make PG_CONFIG=/path/pg_config  build for another one
#   make WERROR=1                   warnings are errors
#
# demo, demo-chat, test, soak and bench must work on a machine that has nothing yet. So nothing
# here asks pg_config unless a goal builds something, and those four install
# what is missing before they start a build.

EXTENSION = pg_changefeed
MODULE_big = pg_changefeed
GATEWAY = pg_changefeed_gateway

SCRIPT_GOALS = help demo demo-chat test neighbours matrix sanitize fuzz hostile limits deb dist soak chaos bench bench-quick format format-check lint
BUILD_GOALS := $(filter-out $(SCRIPT_GOALS),$(or $(MAKECMDGOALS),all))

.DEFAULT_GOAL := all
.PHONY: $(SCRIPT_GOALS)

ifneq ($(BUILD_GOALS),)

# ---------------------------------------------------------------------------
# The library (PGXS)
# ---------------------------------------------------------------------------

PG_CONFIG ?= $(shell bash -c '. scripts/lib.sh && find_pg_config')
PGXS := $(if $(PG_CONFIG),$(wildcard $(shell $(PG_CONFIG) --pgxs 2>/dev/null)))

ifeq ($(PGXS),)
$(error no pg_config with server development files$(if $(PG_CONFIG), at "$(PG_CONFIG)"): install \
postgresql-server-dev-15 ("scripts/setup --for build" does it) or set PG_CONFIG)
endif

EXTENSION_VERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(EXTENSION).control)
DATA = sql/$(EXTENSION)--$(EXTENSION_VERSION).sql $(wildcard sql/$(EXTENSION)--*--*.sql)
OBJS := $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))

# JWT signatures are checked by cjose; jansson and libcrypto come with it.
LIBRARY_PACKAGES = cjose jansson libssl libcrypto
GATEWAY_PACKAGES = libwebsockets libuv libseccomp libssl libcrypto zlib

# Building needs the libraries, cleaning up does not.
ifneq ($(filter-out clean distclean maintainer-clean uninstall,$(BUILD_GOALS)),)
MISSING := $(strip $(foreach p,$(LIBRARY_PACKAGES) $(GATEWAY_PACKAGES),\
	$(if $(filter 0,$(shell pkg-config --exists $(p) 2>/dev/null; echo $$?)),,$(p))))
ifneq ($(MISSING),)
$(error pkg-config does not find $(MISSING): "scripts/setup --for build" installs what is missing)
endif
LIBRARY_CFLAGS := $(shell pkg-config --cflags $(LIBRARY_PACKAGES))
LIBRARY_LIBS := $(shell pkg-config --libs $(LIBRARY_PACKAGES))
GATEWAY_PKG_CFLAGS := $(shell pkg-config --cflags $(GATEWAY_PACKAGES))
GATEWAY_LIBS := $(shell pkg-config --libs $(GATEWAY_PACKAGES))
endif

WARNINGS = -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Wno-sign-compare
ifeq ($(WERROR),1)
WARNINGS += -Werror
endif

PG_CPPFLAGS = $(LIBRARY_CFLAGS)
PG_CFLAGS = -std=gnu11 $(WARNINGS) -MMD -MP
SHLIB_LINK = $(LIBRARY_LIBS) -Wl,--version-script=src/exports.map

# PGXS installs this one with the mode of a program, into PostgreSQL's bindir.
SCRIPTS_built = $(GATEWAY)
EXTRA_CLEAN = build $(OBJS:.o=.d)

# Bitcode serves to inline functions into JIT-compiled queries. None of ours
# is worth it, and it would compile every file twice.
override with_llvm = no

include $(PGXS)

# ---------------------------------------------------------------------------
# The gateway: no PostgreSQL headers, flags of its own
# ---------------------------------------------------------------------------

# Sources of src/ that the gateway has in common with the library.
GATEWAY_SHARED = src/linkframe.c src/network.c src/tls_pair.c

GATEWAY_OBJS := $(patsubst src/%.c,build/gateway/%.o,\
	$(patsubst src/gateway/%,src/%,$(sort $(wildcard src/gateway/*.c))) $(GATEWAY_SHARED))
GATEWAY_CFLAGS = -std=gnu11 -O2 -g $(WARNINGS) -D_GNU_SOURCE -fstack-protector-strong \
	-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fPIE $(GATEWAY_PKG_CFLAGS) -MMD -MP $(COPT) $(PROFILE)
GATEWAY_LDFLAGS = -pie -Wl,-z,relro -Wl,-z,now

$(GATEWAY): $(GATEWAY_OBJS)
	$(CC) $(GATEWAY_CFLAGS) $(GATEWAY_LDFLAGS) -o $@ $(GATEWAY_OBJS) $(GATEWAY_LIBS)

build/gateway/%.o: src/gateway/%.c
	@mkdir -p $(@D)
	$(CC) $(GATEWAY_CFLAGS) -Isrc -c -o $@ $<

build/gateway/%.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(GATEWAY_CFLAGS) -Isrc -c -o $@ $<

# ---------------------------------------------------------------------------
# What must be built again, and when
# ---------------------------------------------------------------------------

# Headers
-include $(OBJS:.o=.d) $(GATEWAY_OBJS:.o=.d)

# Another server version, compiler or set of flags
ifneq ($(filter-out clean distclean maintainer-clean uninstall,$(BUILD_GOALS)),)
FLAGS_NOW := $(PGXS) $(VERSION) $(CC) $(CFLAGS) $(CPPFLAGS) / $(GATEWAY_CFLAGS)
ifneq ($(strip $(FLAGS_NOW)),$(strip $(file <build/flags)))
$(shell mkdir -p build)
$(file >build/flags,$(FLAGS_NOW))
endif
$(OBJS) $(GATEWAY_OBJS): build/flags
build/flags: ;

# Files that came or went
OBJS_NOW := $(OBJS) / $(GATEWAY_OBJS)
ifneq ($(strip $(OBJS_NOW)),$(strip $(file <build/objects)))
$(shell mkdir -p build)
$(file >build/objects,$(OBJS_NOW))
endif
$(MODULE_big)$(DLSUFFIX) $(GATEWAY): build/objects
build/objects: ;
endif

# ---------------------------------------------------------------------------
# The console page: static files that the feed worker serves
# ---------------------------------------------------------------------------

CONSOLE_DIR = $(datadir)/$(EXTENSION)/console
CONSOLE_FILES := $(if $(wildcard console),$(shell cd console && find . -type f ! -name '.*' | sort))

.PHONY: install-console uninstall-console
install: install-console
install-console:
	$(MKDIR_P) $(patsubst %,'$(DESTDIR)$(CONSOLE_DIR)/%',$(sort $(dir $(CONSOLE_FILES)) ./))
	$(foreach f,$(CONSOLE_FILES),$(INSTALL_DATA) console/$(f) '$(DESTDIR)$(CONSOLE_DIR)/$(f)' &&) :

uninstall: uninstall-console
uninstall-console:
	rm -rf '$(DESTDIR)$(datadir)/$(EXTENSION)'

# ---------------------------------------------------------------------------
# What the build is linked with
# ---------------------------------------------------------------------------

.PHONY: sbom
sbom: all
	node scripts/sbom.mjs --pg-config $(PG_CONFIG) --out dist/$(EXTENSION)-$(EXTENSION_VERSION).cdx.json \
		$(MODULE_big)$(DLSUFFIX) $(GATEWAY)

endif # BUILD_GOALS

# ---------------------------------------------------------------------------
# The project's commands
# ---------------------------------------------------------------------------

help:
	@echo 'make                 build the library and the gateway'
	@echo 'make install         install them for the PostgreSQL of PG_CONFIG'
	@echo 'make uninstall       remove what install copied'
	@echo 'make clean           remove what was built'
	@echo 'make demo            start a private cluster with the shop demo and the dashboard'
	@echo 'make demo-chat       the same with the chat demo'
	@echo 'make test            run every test'
	@echo 'make neighbours      run some of them beside pg_cron, pgaudit and other preloaded libraries'
	@echo 'make matrix          build and test with each supported server, in Debian systems of their own (root)'
	@echo 'make sanitize        most tests under sanitizers, assertions and Valgrind (hours); ARGS="--quick", ARGS=asan, ...'
	@echo 'make deb             build Debian packages; ARGS=--check installs and tries them in a clean system (root)'
	@echo 'make dist            the archive for PGXN of what is committed'
	@echo 'make sbom            list what the build is linked with (CycloneDX)'
	@echo 'make soak SECONDS=n  run the convergence test for that long (3600); SEED=n repeats one'
	@echo 'make fuzz SECONDS=n  give every parser hostile bytes for n seconds each (600); TARGETS="..."'
	@echo 'make hostile         good clients among hostile ones: memory, and latency with and without them'
	@echo 'make limits          the limits of the database, as in doc/limits.md'
	@echo 'make chaos SECONDS=n inject faults for that long (3600), as root also full disks; SEED=n repeats the choice'
	@echo 'make bench           run the benchmarks'
	@echo 'make bench-quick     the same in a few minutes, with less precision'
	@echo 'make format          format the C sources'
	@echo 'make format-check    fail if they are not formatted'
	@echo 'make lint            check format, shell scripts, version numbers and lists of packages'
	@echo
	@echo 'Variables: PG_CONFIG=/path/to/pg_config  WERROR=1  ARGS="arguments of demo, test or bench"'

# Goals that build come first if both kinds are given.
demo demo-chat test soak fuzz hostile limits chaos bench bench-quick: | $(BUILD_GOALS)

demo:
	scripts/setup --for demo
	scripts/cluster install
	demo/run $(ARGS)

demo-chat:
	scripts/setup --for demo-chat
	scripts/cluster install
	demo/run chat $(ARGS)

test:
	scripts/setup --for test
	scripts/cluster install
	test/run $(ARGS)

neighbours:
	scripts/setup --for test
	scripts/cluster install
	test/neighbours/run $(ARGS)

matrix:
	scripts/setup --for matrix
	scripts/matrix $(ARGS)

sanitize:
	scripts/setup --for sanitize
	test/sanitize/run $(ARGS)

deb:
	scripts/setup --for deb
	scripts/deb $(ARGS)

dist:
	scripts/dist

soak:
	scripts/setup --for test
	scripts/cluster install
	env SECONDS=$(or $(SECONDS),3600) test/convergence/run

fuzz:
	scripts/setup --for test
	scripts/cluster install
	test/fuzz/run --long $(or $(SECONDS),600) $(TARGETS)

hostile limits:
	scripts/setup --for test
	scripts/cluster install
	test/limits/run $@ $(ARGS)

chaos:
	scripts/setup --for test
	scripts/cluster install
	env SECONDS=$(or $(SECONDS),3600) test/chaos/run $(ARGS)

bench:
	scripts/setup --for bench
	scripts/cluster install
	bench/run $(ARGS)

bench-quick:
	scripts/setup --for bench
	scripts/cluster install
	bench/run --quick $(ARGS)

C_FILES = $$(find src test/fuzz -name '*.[ch]' | sort)
SHELL_FILES = $$(grep -rlsIE --exclude-dir=node_modules --exclude-dir=results \
	'^(\#!/(usr/bin/env bash|bin/sh)|\# shellcheck shell=)' .ci bench debian demo scripts test | sort)

format:
	clang-format -i $(C_FILES)

format-check:
	clang-format --dry-run -Werror $(C_FILES)

lint: format-check
	shellcheck -x $(SHELL_FILES)
	node test/docs/versions.mjs
	node test/docs/packages.mjs
