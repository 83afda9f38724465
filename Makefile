# A short front for CMake (CMakeLists.txt, CMakePresets.json). `make help` lists the targets.
CMAKE := $(or $(wildcard .venv/bin/cmake),cmake)
NINJA := $(or $(wildcard .venv/bin/ninja),ninja)
PREFIX ?= /usr/local
DESTDIR ?=
PROMPT ?= One day Uncle Wiggily
MODEL ?=
PRESET ?=
FUZZ_SECONDS ?= 300
# What compilers and linters look at. Headers of src/ are reached through the sources.
C_FILES = $(wildcard src/*.[ch] src/*/*.[ch] include/*.h cli/*.[ch] tests/*.[ch] examples/*.[ch])

.PHONY: all demo check bench install deps format lint parity fuzz clean help
all: build/build.ninja
	@$(NINJA) -C build

build/build.ninja: CMakePresets.json | build-deps
	@$(CMAKE) --preset release

.PHONY: build-deps
build-deps:
	@tools/deps.sh build

demo: all
	@build/xlstm generate -p "$(PROMPT)" --max-tokens 150 --temperature 0.7 --top-p 0.95 --seed 1 \
		--stats

check:
	@tools/check.sh

bench: all
	@PRESET="$(PRESET)" tools/bench.sh

install: all
	@$(CMAKE) -S . -B build -DCMAKE_INSTALL_PREFIX="$(PREFIX)" >/dev/null
	@$(NINJA) -C build
	@DESTDIR="$(DESTDIR)" $(CMAKE) --install build

deps:
	@tools/deps.sh all

# Lines changed since the last commit: what stands was laid out by hand where that reads better.
format:
	@git clang-format --force --extensions c,h

lint: all
	@tools/lint.sh $(C_FILES)

parity: all
	@test -n "$(MODEL)" || { echo "usage: make parity MODEL=DIR   (a Hugging Face xLSTM folder)"; exit 2; }
	@sh tools/python.sh tools/parity.py --library build/libxlstm.so --model "$(MODEL)"

fuzz:
	@tools/deps.sh test
	@tools/fuzz.sh $(FUZZ_SECONDS)

clean:
	rm -rf build build-*

help:
	@echo "make              build/xlstm, build/libxlstm.so, build/libxlstm.a"
	@echo "make demo         build, then stream text from the model that ships   (PROMPT=...)"
	@echo "make check        every test: unit, sanitizers, fuzz smoke, headers, layers, install, ARM kernels under qemu (FULL=1: all unit tests)"
	@echo "make bench        speed of the geometry that fits the memory, into bench/CPU.csv and a plot; up to 15 minutes (PRESET=410m)"
	@echo "make install      PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)"
	@echo "make deps         install everything the above needs (apt), and Python packages for tests into .venv"
	@echo "make format       clang-format over the lines changed since the last commit"
	@echo "make lint         clang-tidy, cppcheck, shellcheck"
	@echo "make parity       MODEL=DIR: compare every stage and greedy ids with Hugging Face transformers"
	@echo "make fuzz         FUZZ_SECONDS=$(FUZZ_SECONDS) for each fuzz target"
	@echo "make clean        remove the build folders"
