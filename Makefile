# restormer-triton. `make help` prints the comments after `##`.

PYTHON      ?= python3
# All other settings count only on make's command line: a VERSION or OUTPUT in the environment may belong to another program.
PACKAGE     = demo/package
PRECISION   = fp32
TARGET      = auto
VERSION     = 1
BASELINE    = 1
PHOTOS      = demo/photos
TRUTH       = demo/targets
CALIBRATION = demo/calibration
CALIBRATOR  = percentile
ENGINES     = engines
MAX_BATCH   = 8
OPTIMIZATION_LEVEL = $(if $(RELEASE),5,3)
TIMING_ITERATIONS = $(if $(RELEASE),8,1)
TILING      = $(if $(RELEASE),full,none)
COMPATIBILITY = none
WORKSPACE_MB = 0
COMPUTE_CAPABILITIES = 8.6 8.9 12.0
ADDRESS     = $(or $(RESTORMER_ADDRESS),127.0.0.1)
GRPC_PORT   = $(or $(RESTORMER_GRPC_PORT),8001)
METRICS_PORT = $(or $(RESTORMER_METRICS_PORT),8002)
HTTP_PORT   = $(or $(RESTORMER_HTTP_PORT),0)
REPOSITORY  = $(or $(RESTORMER_REPOSITORY),model_repository)
STATE       = $(or $(RESTORMER_STATE),.run)
OUTPUT      = out
$(foreach name,\
	AT_LEAST AUX_STREAMS BATCH BATCHES CONCURRENCY DATA DEVICE ENGINE FILES GATE GPU HARDWARE \
	ONLY_PUBLISHED ONNXRUNTIME_TENSORRT OPT_BATCH PAIRS PERF_ANALYZER PLAN PRICE RATE RATES RECORD RELEASE \
	ROUNDS SECONDS SERVED SIDE SIDE_OVERRIDE SIZE SLO_P99_MS STANDARD TRTEXEC URL,$(eval $(name) =))

ENVS = $(or $(RESTORMER_ENVS),.envs)
$(if $(word 2,$(ENVS)),$(error ENVS=$(ENVS): make cannot use a path with spaces here))
BUILD  := $(ENVS)/build/bin/python
BULK   := $(ENVS)/bulk/bin/python
SERVER := $(ENVS)/server/bin/python
SERVER_FLAGS = --address $(ADDRESS) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT) --http-port $(HTTP_PORT) \
	--repository "$(REPOSITORY)" --state "$(STATE)" $(if $(HARDWARE),--hardware "$(HARDWARE)")
FOLDERS = --repository "$(REPOSITORY)" --engines "$(ENGINES)"
# --quiet: pip prints only warnings and errors.
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
SETUPTOOLS = "$$(sed -n /^setuptools==/p requirements/build.txt)"
# Variables of the user for Python, or for where pip installs packages, do not reach our interpreters.
unexport $(filter-out PYTHON,$(filter PYTHON%,$(.VARIABLES))) PIP_PREFIX PIP_TARGET
export PIP_USER = 0
export PYTHONDONTWRITEBYTECODE = 1

# The last line of output must come from the command and not from make.
MAKEFLAGS += --no-print-directory
# Two installs of one source tree must not run at the same time.
.NOTPARALLEL:
.PHONY: help setup setup-gpu setup-bulk inspect engine evaluate engines rollback serve stop demo test test-docker test-load test-rolling test-bulk \
	verify-gpu canary fuzz benchmark benchmark-core benchmark-gpu benchmark-imaging benchmark-client benchmark-bulk \
	profile tune roofline report \
	lint format lock clean check-python

##@ Start here
help:  ## List the commands and their settings
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^##- / {printf "  %22s  %s\n", "", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
##- every command: REPOSITORY=model_repository  ENGINES=engines  STATE=.run  ENVS=.envs  PYTHON=python3.11
##- measuring and tests: RECORD=file.json  ROUNDS=3

check-python:
	@command -v "$(PYTHON)" >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.11 or 3.12, or make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "error: Python %d.%d cannot run the local server (numpy 1.26 supports 3.12 at most): make PYTHON=python3.11, or python3.12" % v)'
	@"$(PYTHON)" -m server check-python

# Three environments, because their requirements conflict: the server's Python models need numpy 1.26, the build side
# needs PyTorch and numpy 2, and the Triton wheel is installed without dependencies. Each has a stamp file with checksums of
# its lock files: make reinstalls an environment when their content has changed, but not when only their times have (as
# after `git checkout`).
LOCKS_build      := requirements/build.txt requirements/client.txt
LOCKS_server     := requirements/server.txt requirements/triton.txt
LOCKS_dev        := requirements/dev.txt
LOCKS_gpu        := requirements/gpu.txt
LOCKS_bulk       := requirements/bulk.txt
LOCKS_bulk-test  := requirements/bulk-test.txt
# -: standard input, here the path of this folder, which an editable install contains.
LOCKS_build-ours := - pyproject.toml client/pyproject.toml
LOCKS_server-ours := $(LOCKS_build-ours)
LOCKS_bulk-ours  := $(LOCKS_build-ours)
checksums = pwd -P | sha256sum $(LOCKS_$(1))
# A phony target is always out of date.
.PHONY: $(foreach stamp,$(patsubst LOCKS_%,%,$(filter LOCKS_%,$(.VARIABLES))),$(shell \
	$(call checksums,$(stamp)) 2>/dev/null | cmp -s - $(ENVS)/$(stamp).done || echo $(ENVS)/$(stamp).done))

# $(call install,WHAT,COMMANDS) runs the commands and writes the stamp; one line reports a failure.
define install
@echo "installing $(1) ..." >&2
@mkdir -p $(@D) && rm -f $@
@{ $(2); } >$(ENVS)/install.log 2>&1 || { echo "error: cannot install $(1): $$(grep -m 1 -E '^(ERROR|Error)|apt install' $(ENVS)/install.log \
	|| tail -n 1 $(ENVS)/install.log): check the network and the free space, then repeat the command (log: $(ENVS)/install.log)" >&2; exit 1; }
@$(call checksums,$(basename $(@F))) >$@
endef

$(ENVS)/build.done:
	@$(MAKE) check-python
	$(call install,the build side and the client,"$(PYTHON)" -m venv --clear $(ENVS)/build \
		&& $(BUILD) $(PIP_INSTALL) -r requirements/build.txt -r requirements/client.txt)
	@rm -f $(ENVS)/gpu.done

# setuptools is needed to install this repository below.
$(ENVS)/server.done:
	@$(MAKE) check-python
	$(call install,the server,"$(PYTHON)" -m venv --clear $(ENVS)/server && $(SERVER) $(PIP_INSTALL) -r requirements/server.txt $(SETUPTOOLS) \
		&& rm -rf $(ENVS)/triton && $(SERVER) $(PIP_INSTALL) --no-deps --target $(ENVS)/triton -r requirements/triton.txt)

# An editable install of this repository, separate from the packages above because it takes seconds instead of minutes.
# --no-build-isolation: no network is needed.
$(ENVS)/build-ours.done $(ENVS)/server-ours.done $(ENVS)/bulk-ours.done: $(ENVS)/%-ours.done: $(ENVS)/%.done
	$(call install,this repository,$(ENVS)/$*/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation -e . -e client)

$(ENVS)/dev.done: $(ENVS)/build-ours.done
	$(call install,the test tools,$(BUILD) $(PIP_INSTALL) -r requirements/dev.txt)
	@if [ -e $(ENVS)/gpu.done ]; then rm $(ENVS)/gpu.done; $(MAKE) setup-gpu; fi

$(ENVS)/bulk.done:
	@$(MAKE) check-python
	$(call install,Ray and the client,"$(PYTHON)" -m venv --clear $(ENVS)/bulk && $(BULK) $(PIP_INSTALL) -r requirements/bulk.txt $(SETUPTOOLS))

$(ENVS)/bulk-test.done: $(ENVS)/bulk-ours.done
	$(call install,an object store to test against,$(BULK) $(PIP_INSTALL) -r requirements/bulk-test.txt)

setup: $(ENVS)/build-ours.done $(ENVS)/server-ours.done  ## Install the environments of demo and serve into .envs/ (about 3 GB)

# The demo uses the CPU, also on a host with GPUs.
demo: TARGET = cpu
demo: HARDWARE = cpu
demo: setup engine  ## Build the demo engine for this CPU, serve it, enhance demo/photos into out/, evaluate it
##- PRECISION=fp32  PHOTOS=folder  OUTPUT=out
	@$(BUILD) -m demo.run --server-python $(SERVER) --package "$(PACKAGE)" --photos "$(PHOTOS)" --output "$(OUTPUT)" \
		$(if $(PAIRS),--pairs "$(PAIRS)") $(if $(RECORD),--record "$(RECORD)") \
		-- $(SERVER_FLAGS)

# Two workers with one thread each: OpenMP's waiting threads spin and would slow each other down. If a worker dies, its test fails
# and it is not restarted: pytest-xdist would wait forever for its replacement.
test: setup $(ENVS)/dev.done  ## Run all tests, with a real Triton
	@OMP_NUM_THREADS=1 $(BUILD) -m pytest --numprocesses 2 --max-worker-restart 0

##@ Engines
setup-gpu: $(ENVS)/gpu.done  ## On a GPU host: install TensorRT and onnxruntime-gpu
$(ENVS)/gpu.done: $(ENVS)/build-ours.done
	$(call install,TensorRT,$(BUILD) -m pip uninstall --quiet --yes onnxruntime && $(BUILD) $(PIP_INSTALL) -r requirements/gpu.txt -c requirements/build.txt)

inspect: $(ENVS)/build-ours.done  ## Print network, cost, claims and contradictions of PACKAGE
	@$(BUILD) -m export inspect --package "$(PACKAGE)"

engine: $(ENVS)/build-ours.done  ## Build the engine of PACKAGE, check its fidelity, publish it
##- PRECISION=fp32|tf32|bf16|fp16|int8|auto  TARGET=auto|cpu|rtx|tensorrt  PACKAGE=folder  VERSION=1  SIDE_OVERRIDE=512
##- fidelity: PHOTOS=folder  TRUTH=folder, or PAIRS=file.jsonl  DATA=folder; GATE=dB
##- int8: CALIBRATION=folder  CALIBRATOR=percentile|entropy|minmax  PLAN=file
##- tensorrt: MAX_BATCH=8  OPT_BATCH=1  COMPATIBILITY=none|ampere_plus|same_cc  WORKSPACE_MB=0  ONNXRUNTIME_TENSORRT=1
##- tensorrt: RELEASE=1, for OPTIMIZATION_LEVEL=5  TIMING_ITERATIONS=8  TILING=none|fast|moderate|full; AUX_STREAMS=number
##- rtx: COMPUTE_CAPABILITIES='8.6 8.9 12.0'
	@$(BUILD) -m export engine --package "$(PACKAGE)" --precision "$(PRECISION)" --target "$(TARGET)" \
		--version "$(VERSION)" --photos "$(PHOTOS)" --truth "$(TRUTH)" --calibration "$(CALIBRATION)" \
		$(if $(PAIRS),--pairs "$(PAIRS)") $(if $(DATA),--data "$(DATA)") \
		--calibrator "$(CALIBRATOR)" $(if $(PLAN),--plan "$(PLAN)") $(if $(GATE),--gate "$(GATE)") $(if $(SIDE_OVERRIDE),--side-override "$(SIDE_OVERRIDE)") \
		--max-batch "$(MAX_BATCH)" $(if $(OPT_BATCH),--opt-batch "$(OPT_BATCH)") --workspace-mb "$(WORKSPACE_MB)" \
		--optimization-level "$(OPTIMIZATION_LEVEL)" --timing-iterations "$(TIMING_ITERATIONS)" --tiling "$(TILING)" \
		$(if $(AUX_STREAMS),--aux-streams "$(AUX_STREAMS)") \
		--compatibility "$(COMPATIBILITY)" --compute-capabilities "$(COMPUTE_CAPABILITIES)" \
		$(if $(ONNXRUNTIME_TENSORRT),--onnxruntime-tensorrt) \
		--server-python $(SERVER) $(FOLDERS)

evaluate: setup  ## Measure L1, PSNR and SSIM of PACKAGE and its published versions on PAIRS
##- PAIRS=file.jsonl  DATA=folder  VERSION=1,2 (default: all)  URL=host:port of a running server
	@$(if $(PAIRS),,echo "error: PAIRS is not set: make evaluate PAIRS=test.jsonl" >&2; exit 1)
	@$(BUILD) -m export evaluate --package "$(PACKAGE)" --pairs "$(PAIRS)" $(if $(DATA),--data "$(DATA)") \
		$(if $(filter file,$(origin VERSION)),,--versions "$(VERSION)") --repository "$(REPOSITORY)" \
		--output "$(OUTPUT)/evaluate" $(if $(URL),--url "$(URL)",--server-python $(SERVER))

engines: $(ENVS)/build-ours.done  ## List the published engines: precision, fidelity, age, fit for this machine
	@$(BUILD) -m export engines $(FOLDERS)

rollback: $(ENVS)/build-ours.done  ## Remove VERSION; Triton then serves the highest version left
	@$(if $(filter file,$(origin VERSION)),echo "error: VERSION is not set: make rollback VERSION=2" >&2; exit 1)
	@$(BUILD) -m export rollback --version "$(VERSION)" $(FOLDERS)

##@ Serving
serve: $(ENVS)/server-ours.done  ## Start Triton on loopback; return when it enhances a photograph
##- ADDRESS=127.0.0.1  GRPC_PORT=8001  METRICS_PORT=8002  HTTP_PORT=0 (off)  HARDWARE=auto|cpu|gpu|a100|h100|h200
	@$(SERVER) -m server $(SERVER_FLAGS) start

stop:  ## Stop Triton
	@if [ -x $(SERVER) ]; then $(SERVER) -m server $(SERVER_FLAGS) stop; else echo "no server was running" >&2; fi

tune: setup $(ENVS)/dev.done  ## Find settings that meet SLO_P99_MS on this machine; write tuned.env
##- SLO_P99_MS=ms  RATE=photographs per second  SECONDS=per load
	@$(if $(SLO_P99_MS),,echo "error: SLO_P99_MS is not set: make tune SLO_P99_MS=2000 RATE=0.5" >&2; exit 1)
	@$(BUILD) -m operations.tune --slo-p99-ms "$(SLO_P99_MS)" $(if $(RATE),--rate "$(RATE)") --repository "$(REPOSITORY)" \
		--photos "$(PHOTOS)" $(if $(SECONDS),--seconds "$(SECONDS)") $(if $(RECORD),--record "$(RECORD)")

canary: setup $(ENVS)/dev.done  ## Compare VERSION with BASELINE on the same photographs: PSNR and latency
##- VERSION=2  BASELINE=1  AT_LEAST=dB
	@$(BUILD) -m operations.canary --baseline "$(BASELINE)" --candidate "$(VERSION)" --repository "$(REPOSITORY)" \
		--photos "$(PHOTOS)" --truth "$(TRUTH)" $(if $(AT_LEAST),--at-least "$(AT_LEAST)") $(if $(RECORD),--record "$(RECORD)")

setup-bulk: $(ENVS)/bulk-ours.done  ## Install Ray for .envs/bulk/bin/python -m bulk enhance

##@ Measuring
benchmark: setup $(ENVS)/dev.done  ## Measure the served pipeline and its parts with perf_analyzer
##- PERF_ANALYZER=perf_analyzer  CONCURRENCY=1,2,4  RATES=0.5,0.8  SECONDS=10  ONLY_PUBLISHED=1
	@$(BUILD) -m benchmarks.pipeline.pipeline --repository "$(REPOSITORY)" --photos "$(PHOTOS)" --package "$(PACKAGE)" \
		$(if $(PERF_ANALYZER),--perf-analyzer "$(PERF_ANALYZER)") $(if $(CONCURRENCY),--concurrency "$(CONCURRENCY)") \
		$(if $(RATES),--rates "$(RATES)") $(if $(ROUNDS),--rounds "$(ROUNDS)") $(if $(SECONDS),--seconds "$(SECONDS)") \
		$(if $(ONLY_PUBLISHED),--only-published "$(ONLY_PUBLISHED)") $(if $(RECORD),--record "$(RECORD)")

benchmark-core: $(ENVS)/build-ours.done  ## Measure the network alone in every runtime and precision
	@$(BUILD) -m benchmarks.network.core --package "$(PACKAGE)" --photos "$(PHOTOS)" --calibration "$(CALIBRATION)" $(if $(ROUNDS),--rounds "$(ROUNDS)") $(if $(RECORD),--record "$(RECORD)")

benchmark-gpu: $(ENVS)/build-ours.done  ## Measure the owner's base network in PyTorch on a GPU
##- DEVICE=cuda|cpu  SIZE=base|tiny  SIDE=512  BATCHES=1,8,32
	@$(BUILD) -m benchmarks.network.gpu $(if $(DEVICE),--device "$(DEVICE)") $(if $(SIZE),--size "$(SIZE)") \
		$(if $(SIDE),--side "$(SIDE)") $(if $(BATCHES),--batches "$(BATCHES)") $(if $(RECORD),--record "$(RECORD)")

benchmark-imaging: $(ENVS)/build-ours.done  ## Measure time and memory of a photograph without the network
	@$(BUILD) -m benchmarks.pipeline.imaging $(if $(RECORD),--record "$(RECORD)")

benchmark-client: setup  ## Compare the client with perf_analyzer and tritonclient
	@$(BUILD) -m benchmarks.pipeline.client --repository "$(REPOSITORY)" \
		$(if $(PERF_ANALYZER),--perf-analyzer "$(PERF_ANALYZER)") $(if $(ROUNDS),--rounds "$(ROUNDS)") $(if $(RECORD),--record "$(RECORD)")

benchmark-bulk: setup setup-bulk  ## Compare a Ray job with the plain client, and two servers with one
	@$(BUILD) -m benchmarks.pipeline.bulk --repository "$(REPOSITORY)" $(if $(ROUNDS),--rounds "$(ROUNDS)") $(if $(RECORD),--record "$(RECORD)")

profile: $(ENVS)/build-ours.done  ## Time every layer of an engine, by kind
##- PACKAGE=folder, STANDARD=1 or ENGINE=file (default: the published cpu engine)  SIDE=pixels  TRTEXEC=files
	@$(BUILD) -m benchmarks.network.profile $(if $(STANDARD),--standard,$(if $(filter file,$(origin PACKAGE)),,--package "$(PACKAGE)")) \
		$(if $(filter file,$(origin PRECISION)),,--precision "$(PRECISION)") --repository "$(REPOSITORY)" $(if $(ENGINE),--engine "$(ENGINE)") \
		$(if $(SIDE),--side "$(SIDE)") $(if $(TRTEXEC),--trtexec $(TRTEXEC)) $(if $(ROUNDS),--rounds "$(ROUNDS)") $(if $(RECORD),--record "$(RECORD)")

roofline: $(ENVS)/build-ours.done  ## Calculate a GPU's speed limit from the graph and the datasheet
##- GPU=a100|h100|h200|b200  PACKAGE=folder  BATCH=8  PRICE=per hour
	@$(BUILD) -m benchmarks.network.roofline $(if $(GPU),--gpu "$(GPU)") $(if $(filter file,$(origin PACKAGE)),,--package "$(PACKAGE)") \
		$(if $(BATCH),--batch "$(BATCH)") $(if $(PRICE),--price "$(PRICE)") $(if $(RECORD),--record "$(RECORD)")

report: $(ENVS)/dev.done  ## Fill the tables of the docs and draw the plots from recorded runs
	@$(BUILD) -m benchmarks.report.page

verify-gpu: setup  ## On a GPU host: run docs/gpu-checklist.md and record the figures
	@$(BUILD) -m operations.verify_gpu --record "$(or $(RECORD),out/gpu.json)"

##@ Development
lint: $(ENVS)/dev.done  ## Run ruff and mypy --strict
	@$(BUILD) -m ruff check .
	@$(BUILD) -m ruff format --check .
	@$(BUILD) -m mypy

format: $(ENVS)/dev.done  ## Format the code with ruff
	@$(BUILD) -m ruff check --fix .
	@$(BUILD) -m ruff format .

COMPILE = $(BUILD) -m piptools compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links --no-header --allow-unsafe
lock: $(ENVS)/dev.done  ## Update the lock files in requirements/ from the pyproject files
	@$(COMPILE) --extra imaging --extra build --extra cpu --extra train --extra dev pyproject.toml client/pyproject.toml -o requirements/dev.txt
	@$(COMPILE) --extra imaging --extra build --extra cpu -c requirements/dev.txt pyproject.toml -o requirements/build.txt
	@$(COMPILE) -c requirements/dev.txt client/pyproject.toml -o requirements/client.txt
	@$(COMPILE) --extra bulk -c requirements/client.txt pyproject.toml client/pyproject.toml -o requirements/bulk.txt
	@$(COMPILE) --extra bulk-test -c requirements/bulk.txt pyproject.toml -o requirements/bulk-test.txt
	@$(COMPILE) --extra imaging --extra server pyproject.toml client/pyproject.toml -o requirements/server.txt
	@$(COMPILE) --extra imaging -c requirements/server.txt pyproject.toml client/pyproject.toml -o requirements/server-gpu.txt
	@sed -i 's/^torch==\([0-9.]*\)+cpu/torch==\1/' requirements/*.txt

fuzz: setup $(ENVS)/dev.done  ## Enhance thousands of damaged photographs, in process and through a server
##- FILES=number in process  SERVED=number through the server
	@$(BUILD) -m tests.acceptance.fuzz --repository "$(REPOSITORY)" $(if $(FILES),--files "$(FILES)") \
		$(if $(SERVED),--served "$(SERVED)") $(if $(RECORD),--record "$(RECORD)")

test-load: setup $(ENVS)/dev.done  ## Overload a real Triton and kill its processes; fail if a goal is missed
	@$(BUILD) -m tests.acceptance.load --repository "$(REPOSITORY)" --photos "$(PHOTOS)" $(if $(RECORD),--record "$(RECORD)")

test-rolling: setup $(ENVS)/dev.done  ## Replace two Tritons behind round robin under load; fail if a photograph is lost
	@$(BUILD) -m tests.acceptance.rolling --repository "$(REPOSITORY)" $(if $(RECORD),--record "$(RECORD)")

test-bulk: setup $(ENVS)/bulk-test.done $(ENVS)/dev.done  ## Kill a bulk job, its nodes and Triton midway; fail if a photograph is lost
	@$(BUILD) -m pytest tests/acceptance/bulk.py --timeout 900 -p no:cacheprovider

# Uses its own repository and engines; the published ones stay unchanged.
test-docker: TARGET = cpu
test-docker: REPOSITORY = $(shell realpath -m "$(OUTPUT)")/test-docker/model_repository
test-docker: ENGINES = $(shell realpath -m "$(OUTPUT)")/test-docker/engines
test-docker: setup $(ENVS)/dev.done  ## Build, start, call, break and stop the containers from a clean clone
	@command -v docker >/dev/null && docker info >/dev/null 2>&1 || { echo "error: Docker does not answer: install Docker with compose v2 and start it" >&2; exit 1; }
	@rm -rf "$(REPOSITORY)" && mkdir -p "$(REPOSITORY)" && git archive HEAD model_repository | tar -x -C "$(REPOSITORY)/.."
	@$(MAKE) engine TARGET=cpu PRECISION=fp32 VERSION=1 REPOSITORY="$(REPOSITORY)" ENGINES="$(ENGINES)"
	@ENGINES_FOR_TEST="$(REPOSITORY)" $(if $(RECORD),RECORD="$$(realpath -m "$(RECORD)")") $(BUILD) -m pytest tests/docker/test_compose.py tests/acceptance/docker.py --timeout 1800 -p no:cacheprovider

clean: stop  ## Remove environments and outputs; published engines stay
	@rm -rf "$(ENVS)" "$(STATE)" "$(OUTPUT)"
