# Targets install what they need: Debian packages with apt-get, Go tools at
# pinned versions, lab kernels as unpacked packages below .cache.

GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
KERNEL      ?= 6.1
SYNC        ?= syncd
CLOCK       ?= virtual
OUT         ?= out
SEEDS       ?= 1000
MILLIONS    ?= 10
BULK        ?= 300000
DESTDIR     ?=
PREFIX      ?= /usr/local
SYSCONFDIR  ?= /etc
BIN         ?= bin
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT     := mvdan.cc/gofumpt@v0.12.0

# Debian packages that the tests and the demo run: the real servers, the
# peers, the emulator.
PACKAGES := qemu-system-x86 busybox-static xz-utils nftables ipvsadm iproute2 kmod \
            nginx-light redis-server curl iputils-ping keepalived lsb-base tcpdump procps
# And what the kernel module is built with, where it is built; the peers that
# are measured beside us.
test test-kernels bench compare kmod kmod-test kmod-debug kmod-deb: PACKAGES += gcc make binutils sparse
kmod-deb: PACKAGES += dkms dpkg-dev
bench bench-peers: PACKAGES += conntrackd conntrack

# Packages whose tests need a kernel with IPVS; elsewhere they skip with a
# reason, in the lab's guests they must run.
LAB_TESTS := ./ipvs ./ipvs/firstpacket ./partition/forward ./partition/lan ./partition/nft ./partition/queue ./internal/syncd ./cmd/syncd ./test/lab ./test/e2e

# The tests that follow are named without "Test", for regular expressions.

# What takes too long in a guest for every change, or is tried natively as well:
# "make test" leaves it out there, "make test-kernels" does not.
LONG_TESTS := Queues|Inside|Forward|PathMTU|ForeignReload|MixedConnectionsOutliveTenFailovers|LegacyDirectorIsReplaced|KeepalivedIsReplaced|PersistentClientKeepsItsServer|CallsKeepTheirServer|FTPOutlivesItsDirectors|MixedDatagramsKeepTheirServer|ForwardModeOutlivesItsDirectors|NewConnectionsThroughout|MigrationAndBack|PersistentGroupsKeepTheirServer|PacketsThroughIPVS|EveryForwardingMethod|Systemd|KeysRotateOnRealDirectors|KeysRotateAtSIGHUP|Standstill|TemplatesThatDisagreeInTwoKernels|ClockJumps|ThreeNodesOnALAN|DeadForADay|Convergence|SlowKernel|SlowPeer|FullLink|QueueAgainstLists|RefreshesAreHeldBack|LegacyDirectorsAreTold|SilentConnectionsDieEverywhereAtOnce|ServerAloneKeepsAlive|InterfaceVanishesAndReturns|PacketsOfTwoShares|Divide|DatagramFlowMovesInTheKernel

# What a busy machine would spoil: in a guest whose clock counts instructions.
COUNTED := NewConnectionsThroughout|MigrationAndBack

# What has the kernel rewrite its own code, as a module does that comes and goes:
# in a guest whose processors take turns, since an emulated one that runs
# through the code just then may meet the breakpoint when the rewriting is over.
REWRITING := ModuleTellsOfHalfOpenConnectionsAndOfTheirEnd|ModuleComesAndGoesUnderTraffic|FirstPacketIsHeldBack|ModuleMirrorsBothFamiliesInOneService

# What "make test-kernels" boots.
KERNELS ?= 6.1 6.12

# How long a guest may run, for the tests of one package.
LAB_TIMEOUT ?= 15m

# Of the daemon's tests, those that need IPVS.
SARU_LAB := ^Test(NAT|PersistentServices)$$

# The lease's bound as packet captures see it, and what the kernel is refused for.
BOUND := ^Test(Bound|BoundOfTheLast|BoundBesideReloads|FirewallIsNotDeath|PoisonedSwitch|Standstills|Refusals)$$

export CGO_ENABLED = 0
# Plain "go vet" and friends must not reach for another toolchain.
export GOTOOLCHAIN = local

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## static binaries bin/saru and bin/syncd, and the lab's bin/lab and bin/demo
	$(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/ ./cmd/saru ./cmd/syncd ./test/lab/cmd/lab ./test/demo/cmd/demo

.PHONY: deps
deps: ## install the Debian packages that tests and demo need (as root)
	@test/install.sh $(PACKAGES)

.PHONY: lint
lint: ## formatting (gofumpt), go vet, staticcheck
	@bad=$$($(GO) run $(GOFUMPT) -l .); test -z "$$bad" || { echo "gofumpt would change:"; echo "$$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

.PHONY: test
test: deps build kmod ## everything: unit, native namespaces, the module's build, and the lab on 6.1
	@{ $(GO) test -json -short -count=1 ./... ; \
		$(MAKE) --no-print-directory lab-tests KERNEL=6.1 LAB_SKIP='^Test($(LONG_TESTS)|$(REWRITING))$$$$'; \
		$(MAKE) --no-print-directory rewriting-tests KERNEL=6.1; } | $(GO) run ./test/cmd/testsum -again '$(MAKE) --no-print-directory test-again'

# The tests matching AGAIN of the packages AGAIN_IN, as "make test" runs them,
# but one package after another.
.PHONY: test-again
test-again:
	@$(GO) test -json -short -p 1 -count=1 -run "$$AGAIN" $(AGAIN_IN)
	@$(if $(AGAIN_LAB),$(MAKE) --no-print-directory lab-tests KERNEL=6.1 LAB_SKIP='^Test($(LONG_TESTS))$$$$' LAB_RUN='$(subst $$,$$$$,$(value AGAIN))' LAB_TESTS='$(AGAIN_LAB)')

AGAIN_LAB = $(filter $(LAB_TESTS),$(AGAIN_IN:saru/%=./%))

.PHONY: test-kernels
test-kernels: deps build kmod ## the lab's tests on 6.1 and on 6.12 (KERNELS="6.1 6.12")
	@for k in $(KERNELS); do \
		$(MAKE) --no-print-directory lab-tests KERNEL=$$k LAB_TIMEOUT=1h LAB_SKIP='^Test($(COUNTED)|$(REWRITING))$$$$'; \
		$(MAKE) --no-print-directory rewriting-tests KERNEL=$$k; \
		$(MAKE) --no-print-directory lab-tests KERNEL=$$k LAB_TESTS=./cmd/saru LAB_RUN='$(subst $$,$$$$,$(SARU_LAB))'; \
		SARU_LAB_ACCEL=icount $(MAKE) --no-print-directory lab-tests KERNEL=$$k LAB_TIMEOUT=1h LAB_FLAGS='--smp 1' LAB_TESTS=./test/e2e LAB_RUN='^Test($(COUNTED))$$$$'; \
	done | $(GO) run ./test/cmd/testsum

SHORT = -short

# One guest at a time (-p 1): a guest takes both cores.
.PHONY: lab-tests
lab-tests:
	@bin/lab fetch --kernel $(KERNEL) >&2
	@$(GO) test -json $(SHORT) -p 1 -count=1 -timeout $(LAB_TIMEOUT) $(if $(LAB_SKIP),-skip '$(LAB_SKIP)') $(if $(LAB_RUN),-run '$(LAB_RUN)') -exec '$(CURDIR)/bin/lab run --kernel $(KERNEL) --timeout $(LAB_TIMEOUT) $(LAB_FLAGS) --out $(CURDIR)/$(OUT)/lab-$(KERNEL) --env SYNCD_TEST_BINARY=$(CURDIR)/bin/syncd --' $(LAB_TESTS)

.PHONY: rewriting-tests
rewriting-tests:
	@SARU_LAB_ACCEL=single $(MAKE) --no-print-directory lab-tests LAB_TESTS=./internal/syncd LAB_RUN='^Test($(REWRITING))$$$$'

.PHONY: bound
bound: deps build ## the lease's bound by packet captures, natively and on 6.1 and 6.12
	@{ $(GO) test -json -count=1 -short -run '$(BOUND)' ./cmd/saru; \
		for k in 6.1 6.12; do $(MAKE) --no-print-directory lab-tests KERNEL=$$k LAB_TESTS=./cmd/saru LAB_RUN='$(subst $$,$$$$,$(BOUND))'; done; \
	} | $(GO) run ./test/cmd/testsum

.PHONY: e2e
e2e: deps build ## the demonstration's brief form as a test, in a guest (KERNEL=6.1|6.12)
	@$(MAKE) --no-print-directory lab-tests LAB_TESTS=./test/e2e | $(GO) run ./test/cmd/testsum

.PHONY: kmod
kmod: deps ## build the kernel module for Debian's 6.1 and 6.12, warnings are errors
	$(MAKE) -C kmod check

.PHONY: kmod-test
kmod-test: deps build ## the module's tests in a guest of each kernel
	$(MAKE) -C kmod test

.PHONY: kmod-debug
kmod-debug: KERNEL = 6.12
kmod-debug: deps build ## the module's tests on a kernel with KASAN, lockdep and kmemleak, built here first, which takes long (KERNEL=6.12|6.1)
	test/lab/debug-kernel.sh $(KERNEL)
	$(MAKE) -C kmod test KERNELS=$(KERNEL)-debug TIMEOUT=2h

.PHONY: kmod-deb
kmod-deb: deps ## the module's Debian package for DKMS, built and installed in a root of its own
	$(MAKE) -C kmod deb deb-test

.PHONY: rolling
rolling: deps build ## each director drained and restarted under load as a test, in a guest (KERNEL=6.1|6.12)
	@$(MAKE) --no-print-directory lab-tests SHORT= LAB_TESTS=./test/e2e LAB_RUN='^TestFlowsOutliveARollingRestart$$$$' | $(GO) run ./test/cmd/testsum

.PHONY: demo
demo: deps build ## three directors, six power cuts, every flow must live (KERNEL=6.1|6.12, SYNC=syncd|kernel|kernel-tuned)
	bin/demo --host --kernel $(KERNEL) --sync $(SYNC) --out $(CURDIR)/$(OUT)/demo-$(KERNEL)-$(SYNC)

.PHONY: race
race: ## unit and native tests under the race detector
	CGO_ENABLED=1 $(GO) test -race ./...

.PHONY: sim
sim: ## the protocol attacked in virtual time: SEEDS worlds of each profile
	$(GO) test ./membership -run 'TestSimulation$$|TestSlowMachines$$' -sim.seeds $(SEEDS) -timeout 0

# All that docs/performance.md gives figures of, on a machine that does nothing
# else: one after another, so not with -j.
.PHONY: bench
bench: bench-go bench-wire bench-convergence bench-memory bench-failover bench-peers bench-threads bench-bulk compare ## all that follows but bench-busy, one after another, which takes hours (KERNEL=6.1|6.12)

.PHONY: bench-go
bench-go: ## benchmarks, with allocations
	$(GO) test -run '^$$' -bench . -benchmem ./...

.PHONY: bench-wire
bench-wire: ## bytes that a connection takes on the wire
	$(GO) test -count=1 -run '^TestBytesPerRecord$$' -v ./syncproto/peer

.PHONY: bench-convergence
bench-convergence: ## seconds until tables are equal, after 5 % loss and a blackout, in virtual time
	$(GO) test -count=1 -run '^TestConvergence$$' -v ./internal/syncd

.PHONY: bench-memory
bench-memory: ## resident memory of the mirror, of one million connections and of MILLIONS=10
	CONNTABLE_MILLIONS=$(MILLIONS) $(GO) test -count=1 -timeout 1h -run '^TestMemory$$' -v ./conntable

# A measurement in a guest whose clock counts instructions. A guest has none of
# the caller's environment: what a test is switched on by goes by --env.
MEASURE = SARU_LAB_ACCEL=icount $(GO) test -count=1 -timeout 1h -v -exec '$(CURDIR)/bin/lab run --smp 1 --kernel $(KERNEL) --timeout 1h

.PHONY: bench-threads
bench-threads: deps build ## syncd beside the kernel's own sync threads, in a guest (KERNEL=6.1|6.12)
	bin/lab fetch --kernel $(KERNEL)
	$(MEASURE) --env SARU_MEASURE=1 --env SYNCD_TEST_BINARY=$(CURDIR)/bin/syncd --' -run '^TestMeasureRate$$' ./internal/syncd

.PHONY: bench-bulk
bench-bulk: deps build ## how fast a kernel takes BULK=300000 connections, its table of 2^12 and of 2^20 buckets, in guests (KERNEL=6.1|6.12)
	bin/lab fetch --kernel $(KERNEL)
	$(MEASURE) --append ip_vs.conn_tab_bits=12 --env IPVS_BULK=$(BULK) --' -run '^TestBulk$$' ./ipvs
	$(MEASURE) --append ip_vs.conn_tab_bits=20 --env IPVS_BULK=$(BULK) --' -run '^TestBulk$$' ./ipvs

.PHONY: bench-failover
bench-failover: deps build ## 30 power cuts each of saru and of keepalived, as root
	$(GO) run ./test/failover/cmd/failover

.PHONY: bench-busy
bench-busy: deps build ## ten minutes on busy processors: no living director may be taken for dead
	$(GO) run ./test/failover/cmd/failover -busy 10m

.PHONY: bench-peers
bench-peers: deps ## syncd beside conntrackd, 20,000 flows a second and as many as there can be, as root
	$(GO) run ./test/versus/cmd/versus
	$(GO) run ./test/versus/cmd/versus -rate 0

.PHONY: compare
compare: deps build kmod ## the kernel's sync threads, syncd's tap and the module, side by side (KERNEL=6.1|6.12, CLOCK=virtual|real)
	$(GO) build -trimpath -o bin/ ./test/compare/cmd/compare
	bin/compare --host --clock $(CLOCK) --kernel $(KERNEL) --out $(CURDIR)/$(OUT)/compare-$(KERNEL)

# What is installed: mode, file, place. Paths of programs and documents in units
# and scripts become those of PREFIX. NetworkManager reads no other local place.
INSTALLED = \
	755 $(BIN)/saru                                  $(PREFIX)/sbin/saru \
	755 $(BIN)/syncd                                 $(PREFIX)/sbin/syncd \
	644 packaging/systemd/saru.service               $(PREFIX)/lib/systemd/system/saru.service \
	644 packaging/systemd/syncd.service              $(PREFIX)/lib/systemd/system/syncd.service \
	644 packaging/systemd/saru-sleep.service         $(PREFIX)/lib/systemd/system/saru-sleep.service \
	755 packaging/sysv/saru                          $(SYSCONFDIR)/init.d/saru \
	755 packaging/sysv/syncd                         $(SYSCONFDIR)/init.d/syncd \
	644 packaging/man/saru.8                         $(PREFIX)/share/man/man8/saru.8 \
	644 packaging/man/syncd.8                        $(PREFIX)/share/man/man8/syncd.8 \
	644 packaging/modprobe.d/ip_vs.conf              $(PREFIX)/lib/modprobe.d/ip_vs.conf \
	644 packaging/network/networkd-saru.conf         $(PREFIX)/lib/systemd/networkd.conf.d/saru.conf \
	644 packaging/network/NetworkManager-saru.conf   $(SYSCONFDIR)/NetworkManager/conf.d/saru.conf \
	644 packaging/saru.toml                          $(PREFIX)/share/doc/saru/examples/saru.toml \
	644 packaging/syncd.toml                         $(PREFIX)/share/doc/saru/examples/syncd.toml \
	644 README.md                                    $(PREFIX)/share/doc/saru/README.md \
	644 LICENSE                                      $(PREFIX)/share/doc/saru/LICENSE \
	$(foreach d,$(wildcard docs/*.md),644 $(d) $(PREFIX)/share/doc/saru/$(notdir $(d)))

.PHONY: install
install: ## what "make build" made, units, scripts, documents; starts nothing (DESTDIR, PREFIX, SYSCONFDIR)
	@test -x $(BIN)/saru && test -x $(BIN)/syncd || { echo "$(BIN)/saru or $(BIN)/syncd is not there: run 'make build' first" >&2; exit 1; }
	@set -e; set -- $(INSTALLED); while [ $$# -gt 0 ]; do \
		to="$(DESTDIR)$$3"; echo "$$to"; \
		case $$2 in \
		*/systemd/* | */sysv/*) \
			install -d "$${to%/*}"; \
			sed 's,/usr/sbin/\(saru\|syncd\),$(PREFIX)/sbin/\1,; s,/usr/share/doc/,$(PREFIX)/share/doc/,' $$2 >"$$to.new"; \
			chmod $$1 "$$to.new"; mv -f "$$to.new" "$$to" ;; \
		*) install -D -m $$1 $$2 "$$to" ;; \
		esac; \
		shift 3; done
	@install -d -m 755 "$(DESTDIR)$(SYSCONFDIR)/saru"

.PHONY: uninstall
uninstall: ## remove what "make install" put there; configurations and keys stay
	@set -- $(INSTALLED); while [ $$# -gt 0 ]; do rm -f "$(DESTDIR)$$3"; shift 3; done

.PHONY: clean
clean: ## remove what was built, and the lab's output; keep .cache
	rm -rf bin out
