# Developer entry points. `make` alone lists them.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PREFIX  ?= /usr/local
MANDIR  ?= $(PREFIX)/share/man
# mount(8) looks for its helpers in /sbin only.
SBINDIR ?= /sbin
LOWER   ?= /
ROUNDS  ?= 5
# What to measure: union, branches, mounts, blocks, pool, containers.
BENCH   ?= union branches blocks pool containers
# Where the chart of union goes, an SVG file.
CHART   ?=
# The work that is profiled: a shell command, in a mount over LOWER.
WORK    ?= find usr -ls; tar -cf - usr/share | cat; mkdir made; for i in $$(seq 2000); do echo $$i > made/$$i; done; rm -r made
FUZZTIME ?= 10m

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/layerfs, one static binary
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/layerfs ./cmd/layerfs

.PHONY: demo
demo: ## the main job on real input: a merged root over LOWER=/, changed from inside
	@tests/need.sh demo
	@$(MAKE) --no-print-directory build
	@LOWER='$(LOWER)' tests/demo/demo.sh

.PHONY: test
test: ## every test, as root and as an ordinary user; installs what it lacks
	@tests/need.sh test
	@$(MAKE) --no-print-directory build
	@tests/run.sh

.PHONY: soak
soak: ## the long forms of the tests: a million operations, 200 power cuts (root, hours; SUITES=)
	@tests/need.sh test
	@$(MAKE) --no-print-directory build
	@tests/soak.sh $(SUITES)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME=10m
	@grep -rl --include=*_test.go '^func Fuzz' . | while read -r f; do \
		sed -n 's/^func \(Fuzz[A-Za-z]*\).*/\1/p' "$$f" | while read -r target; do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x "./$$(dirname "$$f")" || exit 1; \
		done || exit 1; \
	done

.PHONY: test-podman
test-podman: ## Podman and Buildah on layerfs against fuse-overlayfs, rootful and rootless; with blocks
	@$(MAKE) --no-print-directory build
	@tests/podman/run.sh
	@tests/podman/blocks.sh

.PHONY: test-oci
test-oci: ## layers against Buildah, umoci, skopeo and Podman (root; installs them)
	@$(MAKE) --no-print-directory build
	@tests/layers/oci-tools.sh

.PHONY: test-vm
test-vm: ## a pool becomes a real dm-thin pool and comes back, in a virtual machine
	@$(MAKE) --no-print-directory build
	@LAYERFS='$(CURDIR)/bin/layerfs' tests/vm/run.sh

.PHONY: lint
lint: ## formatting, vet, and who may import whom
	@test -z "$$(gofmt -l .)" || { echo "not formatted (gofmt -w .):"; gofmt -l .; exit 1; }
	go vet ./...
	go vet -tags faults ./internal/sys ./cmd/layerfs
	go test ./internal/lint

.PHONY: bench
bench: ## layerfs and its peers in turn on a fresh file system: unions, pools, containers (root)
	@tests/need.sh bench
	@$(MAKE) --no-print-directory build
	@ROUNDS='$(ROUNDS)' CHART='$(CHART)' tests/bench/bench.sh $(BENCH)

.PHONY: profile
profile: ## where the daemon spends its time in WORK='...', over LOWER=/
	@tests/need.sh demo
	@CGO_ENABLED=0 go build -o bin/layerfs-profiled ./cmd/layerfs
	@LOWER='$(LOWER)' WORK='$(WORK)' tests/bench/profile.sh

.PHONY: install
install: build ## binary, helpers for mount(8), manual page (PREFIX, DESTDIR)
	install -D -m 755 bin/layerfs '$(DESTDIR)$(PREFIX)/bin/layerfs'
	install -d '$(DESTDIR)$(SBINDIR)'
	ln -sf '$(PREFIX)/bin/layerfs' '$(DESTDIR)$(SBINDIR)/mount.layerfs'
	ln -sf '$(PREFIX)/bin/layerfs' '$(DESTDIR)$(SBINDIR)/mount.fuse.layerfs'
	install -D -m 644 doc/layerfs.8 '$(DESTDIR)$(MANDIR)/man8/layerfs.8'

.PHONY: clean
clean: ## remove what the other targets made here
	rm -rf bin
