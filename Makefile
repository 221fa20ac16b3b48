# A thin list of commands over meson.build, which is the one build description.
BUILD ?= build
PREFIX ?= /usr/local
SECONDS_PER_FUZZER ?= 60
# Homebrew keeps these out of the way of Apple's own; they do nothing elsewhere.
BREW := $(shell command -v brew >/dev/null 2>&1 && brew --prefix)
ifneq ($(BREW),)
export PKG_CONFIG_PATH := $(BREW)/opt/openssl@3/lib/pkgconfig:$(BREW)/opt/curl/lib/pkgconfig:$(PKG_CONFIG_PATH)
endif

.PHONY: build deps demo test install check sanitize coverage soak sim sim-mutants fuzz bench oracle cross cross-arm64 docs clean help
build: deps $(BUILD)/build.ninja
	@tools/find-mlx.sh $(BUILD)
	ninja -C $(BUILD)

help:
	@echo "make [build]        builds into $(BUILD)/, installing what is missing first"
	@echo "make demo           three workers, a chat, a killed worker: the whole system in action"
	@echo "make test           every test"
	@echo "make install        into PREFIX=$(PREFIX)"
	@echo "make check          format, layers, banned calls, sizes, documents in step"
	@echo "make sanitize       the tests under address, undefined-behaviour and thread sanitizers"
	@echo "make coverage       line coverage of the tests, at least 85 %"
	@echo "make soak           the fault matrix with its long variants, about 20 minutes"
	@echo "make sim            the control core under 200,000 seeds of simulated faults;  make sim-mutants  does it notice?"
	@echo "make fuzz           every fuzz target for SECONDS_PER_FUZZER=$(SECONDS_PER_FUZZER)"
	@echo "make bench          speeds of this machine;  make oracle  goldens made anew and compared"
	@echo "make cross          everything compiled and linked for Apple Silicon, on Linux"
	@echo "make cross-arm64    the NEON kernels compared with scalar, under qemu"
	@echo "make docs           docs/cli.md from the option table;  make clean"

deps:
	@tools/setup-deps.sh

$(BUILD)/build.ninja:
	meson setup $(BUILD)

demo: build
	@python3 tools/demo.py $(BUILD)

test: build
	@tools/run_tests.sh $(BUILD)

install: build
	meson configure $(BUILD) -Dprefix=$(abspath $(PREFIX))
	meson install -C $(BUILD)

check: build
	@python3 tools/check_house.py $(BUILD)

docs: build
	$(BUILD)/src/cli/mlxd-optdoc markdown > docs/cli.md

sanitize: deps
	@tools/sanitize.sh

coverage: deps
	@tools/coverage.sh

soak: build
	@MXD_SOAK=1 MXD_TEST_SECONDS=3600 tools/run_tests.sh $(BUILD) -k test_faults

sim: build
	@tools/sim.sh $(BUILD) 200000

sim-mutants: build
	ninja -C $(BUILD) sim-mutants

fuzz: deps
	@tools/fuzz.sh $(SECONDS_PER_FUZZER)

bench: build
	@bench/run.sh $(BUILD)

oracle: build
	@tools/oracle/run.sh $(or $(PYTHON),python3) $(abspath $(BUILD))

cross:
	@tools/cross-macos.sh

cross-arm64:
	@tools/cross-arm64.sh

clean:
	rm -rf $(BUILD) build-arm64 build-macos build-asan build-tsan build-coverage build-fuzz
