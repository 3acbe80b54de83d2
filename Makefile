# make            build every program into build/bin
# make demo       run everything on the embedded models and print the two tables
# make test       build and run the tests
# make ONNX=1     the same with `imagenet --save DIR --format onnx`
# make MPI=1      the same for `mpirun -n K imagenet|perplexity|table ...`
# make help       the rest
BUILD    ?= build
CXXFLAGS ?= -O2 -g1
TESTFLAGS ?= -O0  # of the tests' own files, which are long to optimise and quick to run
COLDFLAGS ?= -O1  # of files that read, write and print
KERNELFLAGS ?= -O3  # of engine/kernels, each set for its processors
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
PREFIX   ?= /usr/local
PYTHON   ?= python3
CLANG_FORMAT ?= clang-format
CLANG    ?= clang++-14
JPEG     ?= stb
ONNX     ?= 0
MPI      ?= 0
$(if $(filter stb turbo,$(JPEG)),,$(error JPEG=$(JPEG): stb, or turbo for libjpeg-turbo))
$(if $(filter 0 1,$(ONNX)),,$(error ONNX=$(ONNX): 0, or 1 to write ONNX files))
$(if $(filter 0 1,$(MPI)),,$(error MPI=$(MPI): 0, or 1 to share out work with mpirun))

# Contraction off: the kernels promise equal bits on every instruction set (engine/kernels/kernels.h).
FLAGS := -std=c++20 -Wall -Wextra -Werror -pthread -ffp-contract=off -fno-math-errno -fno-trapping-math -I. -MMD -MP
LIBS  := -lopenblas -lpcre2-8 -lutf8proc -lz
LIBS += $(if $(filter turbo,$(JPEG)),-ljpeg) $(if $(filter 1,$(ONNX)),-lonnx_proto -lprotobuf) $(if $(filter 1,$(MPI)),-lmpi)

PROGRAMS := imagenet perplexity classify report generate forward table demo bench
MAINS    := $(PROGRAMS:%=eval/main_%.cpp)
OTHERS   := $(filter-out data/image/jpeg_$(JPEG).cpp,$(wildcard data/image/jpeg_*.cpp)) \
            engine/file/onnx_$(if $(filter 1,$(ONNX)),none,protobuf).cpp \
            engine/core/mpi_$(if $(filter 1,$(MPI)),none,real).cpp  # not of this build
SCHEMA   := -DONNX_ML=1 -DONNX_NAMESPACE=onnx  # that Debian's package has
COMMAND  := eval/cli.cpp eval/page.cpp eval/results.cpp eval/layer_report.cpp $(wildcard eval/tables/*.cpp eval/bench/*.cpp)  # what only the programs need
LIBRARY  := $(filter-out $(MAINS) $(OTHERS) $(COMMAND),$(wildcard engine/*/*.cpp models/*.cpp quant/*.cpp data/*.cpp data/*/*.cpp eval/*.cpp))
TESTS    := $(wildcard tests/*.cpp)
TESTED   := $(wildcard tests/kernels/*.cpp)  # kernels that only tests run
PARITY   := $(wildcard tests/parity/*.cpp)
FUZZ     := $(wildcard tests/fuzz/*.cpp)
SOURCES  := $(LIBRARY) $(COMMAND) $(MAINS) $(TESTS) $(TESTED) $(PARITY) $(FUZZ)
object    = $(1:%.cpp=$(BUILD)/obj/%.o)
binaries := $(PROGRAMS:%=$(BUILD)/bin/%)
COMMANDS := $(BUILD)/libcommand.a

.PHONY: all demo test asan asan-library fuzz chaos tsan bench bench-peers table-vision table-language table-groups table-billm tables readme-tables parity reference-env layers format format-check install deb example tidy clean help setup
.DELETE_ON_ERROR:
.PRECIOUS: $(BUILD)/obj/%.o

all: $(binaries)

# --- Set-up: what is missing is installed, or listed where there is no apt. -------------------------
# package:a header only it brings (cblas.h comes with other libraries too)
NEEDS := libopenblas-dev:openblas_config.h nlohmann-json3-dev:nlohmann/json.hpp libstb-dev:stb/stb_image.h \
         doctest-dev:doctest/doctest.h libcli11-dev:CLI/CLI.hpp libpcre2-dev:pcre2posix.h zlib1g-dev:zlib.h \
         libutf8proc-dev:utf8proc.h $(if $(filter turbo,$(JPEG)),libjpeg-dev:jpeglib.h) \
         $(if $(filter 1,$(ONNX)),libprotobuf-dev:google/protobuf/message.h libonnx-dev:onnx/onnx-ml.pb.h) \
         $(if $(filter 1,$(MPI)),libopenmpi-dev:mpi/mpi.h openmpi-bin:mpi/mpi.h openssh-client:mpi/mpi.h)

setup: $(BUILD)/.setup
$(BUILD)/.setup: Makefile $(BUILD)/jpeg $(BUILD)/onnx $(BUILD)/mpi
	@mkdir -p $(BUILD)
	@missing=; for need in $(NEEDS); do \
	  echo "#include <$${need#*:}>" | $(CXX) -std=c++20 -E -x c++ - >/dev/null 2>&1 || missing="$$missing $${need%%:*}"; \
	done; \
	if [ -n "$$missing" ]; then \
	  if ! command -v apt-get >/dev/null; then \
	    echo "Please install these (Debian's names):$$missing"; exit 1; \
	  fi; \
	  echo "Installing$$missing"; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -q && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -qy --no-install-recommends $$missing; \
	fi
	@touch $@

# --- Build -------------------------------------------------------------------------------------------
$(BUILD)/obj/engine/file/onnx_protobuf.o: private FLAGS += $(SCHEMA)
$(BUILD)/obj/engine/kernels/kernels_plain.o:  ISA = $(KERNELFLAGS)
$(BUILD)/obj/engine/kernels/kernels_avx2.o:   ISA = $(KERNELFLAGS) -mprfchw -mavx2 -mfma -mf16c
$(BUILD)/obj/engine/kernels/kernels_avxvnni.o: ISA = $(KERNELFLAGS) -mprfchw -mavx2 -mfma -mf16c -mavxvnni
$(BUILD)/obj/engine/kernels/kernels_avx512.o: ISA = $(KERNELFLAGS) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c -mprefer-vector-width=512
$(BUILD)/obj/engine/kernels/kernels_amx.o:    ISA = $(KERNELFLAGS) -mamx-tile -mamx-int8
$(call object,$(TESTED)): ISA = $(KERNELFLAGS) -mprfchw -mavx2 -mfma -mf16c -mno-avxvnni -mno-avx512f

# Files that read, write and print: quick to run and long to optimise.
COLD := $(filter eval/% models/% engine/file/% quant/recipe% %_folder.cpp %_file.cpp %_files.cpp %labels.cpp,$(LIBRARY)) $(COMMAND) $(MAINS) $(PARITY)

# Where files are read, libFuzzer counts what a file reaches.
READERS := $(COLD) $(filter data/%,$(LIBRARY)) $(FUZZ)
$(call object,$(READERS)) $(BUILD)/cold/precompiled.h.gch: COVERAGE = $(if $(COUNTED),-fsanitize=fuzzer-no-link)

# Headers of other libraries are compiled once for cold files, once for tests and once for hot files, those that compute
# (kernels have flags of their own); g++ and clang++ take NAME.gch for NAME.
HOT := $(filter-out $(COLD) engine/kernels/%,$(filter engine/% quant/%,$(LIBRARY)))
# $(1): its name, $(2): the folder of its header, $(3): its flags, $(4): the files
define precompile
$(call object,$(4)): FIRST = $(3) -include $(BUILD)/$(1)/precompiled.h
$(call object,$(4)): $(BUILD)/$(1)/precompiled.h.gch
$(BUILD)/$(1)/precompiled.h.gch: FIRST = $(3)
$(BUILD)/$(1)/precompiled.h.gch: $(2)/precompiled.h | $(BUILD)/.setup
	@mkdir -p $$(@D); cp $$< $$(basename $$@)
	$$(CXX) $$(FLAGS) $$(CXXFLAGS) $$(COVERAGE) $$(FIRST) $$(PCHFLAGS) -x c++-header $$< -o $$@
endef
$(eval $(call precompile,hot,engine/core,,$(HOT)))
$(eval $(call precompile,cold,engine,$(COLDFLAGS),$(COLD)))
$(eval $(call precompile,tests,tests,$(TESTFLAGS),$(TESTS)))
$(BUILD)/obj/tests/test_onnx.o: $(BUILD)/onnx
$(BUILD)/obj/tests/test_onnx.o: private FLAGS += $(if $(filter 1,$(ONNX)),-DBCQ_ONNX $(SCHEMA))

$(BUILD)/obj/%.o: %.cpp | $(BUILD)/.setup
	@mkdir -p $(@D)
	$(CXX) $(FLAGS) $(CXXFLAGS) $(ISA) $(COVERAGE) $(FIRST) $(PCHFLAGS) -c $< -o $@

# What may differ from the last build in this folder: the version changes with every commit and one file is built
# again for it; another JPEG decoder takes the place of the other in the library, and so does what writes ONNX.
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
$(BUILD)/version: NOW := $(VERSION)
$(BUILD)/jpeg:    NOW := $(JPEG)
$(BUILD)/onnx:    NOW := $(ONNX)
$(BUILD)/mpi:     NOW := $(MPI)
$(BUILD)/version $(BUILD)/jpeg $(BUILD)/onnx $(BUILD)/mpi: FORCE
	@mkdir -p $(BUILD); [ "$$(cat $@ 2>/dev/null)" = "$(NOW)" ] || echo "$(NOW)" > $@
$(BUILD)/obj/eval/version.o: $(BUILD)/version
$(BUILD)/obj/eval/version.o: private FLAGS += -DBCQ_VERSION='"$(VERSION)"'
FORCE:

$(BUILD)/libbcq.a: $(call object,$(LIBRARY)) $(BUILD)/jpeg $(BUILD)/onnx $(BUILD)/mpi
	@rm -f $@
	ar rcs $@ $(filter %.o,$^)

$(BUILD)/libcommand.a: $(call object,$(COMMAND))
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/bin/%: $(BUILD)/obj/eval/main_%.o $(BUILD)/libcommand.a $(BUILD)/libbcq.a
	@mkdir -p $(@D)
	$(CXX) $(FLAGS) $(CXXFLAGS) $^ -o $@ $(LIBS)

$(BUILD)/bin/parity/%: $(BUILD)/obj/tests/parity/%.o $(BUILD)/libbcq.a
	@mkdir -p $(@D)
	$(CXX) $(FLAGS) $(CXXFLAGS) $^ -o $@ $(LIBS)

# The library first, so that of functions in headers its copies are taken, which are optimised.
$(BUILD)/bin/tests: $(COMMANDS) $(BUILD)/libbcq.a $(call object,$(TESTS) $(TESTED))
	@mkdir -p $(@D)
	$(CXX) $(FLAGS) $(CXXFLAGS) -Wl,--whole-archive $(filter %.a,$^) -Wl,--no-whole-archive $(filter %.o,$^) -o $@ \
	  $(if $(filter 1,$(ONNX)),-lonnx) $(LIBS)

$(BUILD)/bin/fuzz: $(call object,$(FUZZ)) $(BUILD)/libbcq.a
	@mkdir -p $(@D)
	$(CXX) $(FLAGS) $(CXXFLAGS) -fsanitize=fuzzer $^ -o $@ $(LIBS)

-include $(patsubst %.cpp,$(BUILD)/obj/%.d,$(SOURCES)) $(patsubst %,$(BUILD)/%/precompiled.h.d,hot cold tests)

# --- Run ---------------------------------------------------------------------------------------------
demo: all
	$(BUILD)/bin/demo --json $(BUILD)/demo.json
	$(BUILD)/bin/report $(BUILD)/demo.json -o $(BUILD)/report.html --title "The embedded models"
	@echo "The same as a page: $(BUILD)/report.html"

# The paper's vision table: of the checkpoints in MODELS on the images of IMAGENET, or of the embedded models.
table-vision: all
	$(BUILD)/bin/table $(if $(MODELS),--models $(MODELS) --imagenet $(IMAGENET)) --out $(BUILD)/table-vision \
	  --json $(BUILD)/table-vision.json $(TABLE_ARGS)

# All four, one after the other; each goes on where it was stopped.
tables:
	$(MAKE) table-vision
	$(MAKE) table-language
	$(MAKE) table-groups
	$(MAKE) table-billm

# The language tables: of the checkpoints in MODELS on the texts of CORPORA, or of the embedded models.
table-language table-groups table-billm: table-%: all
	$(BUILD)/bin/table $* $(if $(MODELS),--models $(MODELS) --corpora $(CORPORA)) --out $(BUILD)/table-$* \
	  --json $(BUILD)/table-$*.json $(TABLE_ARGS)

# Writes the tables of READMEs again, from the records in eval/results.
readme-tables: $(BUILD)/bin/report
	@for file in README.md quant/README.md eval/bench/README.md; do $< eval/results --into $$file || exit 1; done

test: $(BUILD)/bin/tests $(binaries)
	BCQ_BIN=$(BUILD)/bin tests/run.sh $(BUILD)/bin/tests $(TEST_ARGS)

# AddressSanitizer and UndefinedBehaviorSanitizer on the same tests. With them clang cannot vectorise. A folder for each
# compiler; clang's objects serve the harnesses of tests/fuzz, too. Undefined behaviour is looked for in the product, not in
# its tests; and of each address in a kernel AddressSanitizer alone asks, for both together take three times as long to compile.
sanitized = BUILD=$(BUILD)/asan-$(notdir $(1)) CXX=$(1) $(if $(findstring clang,$(1)),COUNTED=1 PCHFLAGS=-fpch-instantiate-templates) \
  CXXFLAGS="-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all $(if $(findstring clang,$(1)),-Wno-pass-failed,-Wno-maybe-uninitialized)" \
  TESTFLAGS="-O0 -g0 -fno-sanitize=undefined" KERNELFLAGS="-O1 -fno-sanitize=null,object-size,pointer-overflow"
asan:
	ASAN_OPTIONS=malloc_context_size=5 $(MAKE) $(call sanitized,$(CXX)) test

# The same without tests of programs, which take long for their figures; what they read is in the library, too. Freed memory
# is watched for 16 MB of further frees, not 256.
asan-library:
	ASAN_OPTIONS=malloc_context_size=2:quarantine_size_mb=16 $(MAKE) $(call sanitized,$(CXX)) binaries= COMMANDS= TESTS="$(filter-out tests/test_cli% tests/test_onnx% tests/test_paired%,$(TESTS))" test

# Every harness on two cores or more, TIME seconds of work in all: what it finds is in build/fuzz.
TIME ?= 60
fuzz:
	$(MAKE) $(call sanitized,$(CLANG)) $(BUILD)/asan-$(notdir $(CLANG))/bin/fuzz
	tests/fuzz/run.sh $(BUILD)/asan-$(notdir $(CLANG))/bin/fuzz $(BUILD)/fuzz $(TIME)

# Programs killed and starved, KILLS times; what they make in the end equals an undisturbed run.
KILLS ?= 200
chaos: all
	tests/chaos.sh $(BUILD)/bin $(KILLS) $(SEED)

# ThreadSanitizer on the tests that use threads; what happens inside OpenBLAS, which is not instrumented, is not reported.
TSAN := $(BUILD)/tsan
TSAN_TESTS := parallel cache product packed int8_layer image_folder moments gptq_walk generate ptq4vit
tsan:
	$(MAKE) BUILD=$(TSAN) CXX=$(CLANG) CXXFLAGS="-O1 -g1 -fsanitize=thread -Wno-pass-failed" TESTFLAGS=-O0 \
	  TESTS="tests/main.cpp $(TSAN_TESTS:%=tests/test_%.cpp)" $(TSAN)/bin/tests
	TSAN_OPTIONS=ignore_noninstrumented_modules=1 $(TSAN)/bin/tests $(TEST_ARGS)

bench: all
	$(BUILD)/bin/bench

# The same work by PyTorch, ONNX Runtime, OpenVINO and llama.cpp, which comes as source (its image models are not needed).
PEERS := $(BUILD)/peers
$(PEERS)/.ready: tests/reference/requirements.txt tests/reference/requirements-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install -q -r $<
	@for package in $$(grep -v '^#' tests/reference/requirements-peers.txt); do \
	  CMAKE_ARGS=-DLLAVA_BUILD=OFF $(PEERS)/bin/pip install -q $$package || \
	    echo "$$package could not be installed and is left out"; \
	done
	@touch $@
bench-peers: all $(PEERS)/.ready
	BCQ_BIN=$(BUILD)/bin $(PEERS)/bin/python tests/reference/bench_peers.py --json $(BUILD)/bench-peers.json $(PEERS_ARGS)

# Real-shape comparisons with PyTorch, timm, transformers, Pillow and tokenizers.
VENV := $(BUILD)/reference
reference-env: $(VENV)/.ready
$(VENV)/.ready: tests/reference/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r $<
	@touch $@
# The runtimes that onnx_parity.py compares with; the versions are those of bench-peers.
$(VENV)/.onnx: tests/reference/requirements-peers.txt $(VENV)/.ready
	$(VENV)/bin/pip install -q $$(grep -E '^(onnx|onnxruntime|openvino)=' $<)
	@touch $@
parity: all reference-env $(if $(filter 1,$(ONNX)),$(VENV)/.onnx) $(PARITY:tests/parity/%.cpp=$(BUILD)/bin/parity/%)
	$(MAKE) BUILD=$(BUILD)/turbo JPEG=turbo $(BUILD)/turbo/bin/parity/dump_pixels
	@for script in tests/parity/*.py; do $(VENV)/bin/python $$script || exit 1; done

# --- Keep --------------------------------------------------------------------------------------------
# engine <- models <- quant <- eval; engine <- data <- eval. quant knows models by model.h alone.
# Inside engine: core <- kernels <- grid <- gemm <- nn, file.
layers:
	@! grep -rnE '#include "(models|quant|eval|data)/' engine
	@! grep -rnE '#include "engine/(kernels|grid|gemm|nn|file)/' engine/core
	@! grep -rnE '#include "engine/(grid|gemm|nn|file)/' engine/kernels
	@! grep -rnE '#include "engine/(gemm|nn|file)/' engine/grid
	@! grep -rnE '#include "engine/(nn|file)/' engine/gemm
	@! grep -rnE '#include "engine/file/' engine/nn
	@! grep -rnE '#include "engine/nn/' engine/file
	@! grep -rnE '#include "(quant|eval|data)/' models --include=*.h --include=*.cpp
	@! grep -rnE '#include "(eval|data)/' quant --include=*.h --include=*.cpp
	@! grep -rnE '#include "models/' quant --include=*.h --include=*.cpp | grep -v '"models/model.h"'
	@! grep -rnE '#include "(models|quant|eval)/' data --include=*.h --include=*.cpp
	@! grep -rnE '#include "(eval/(cli|tables|bench)|CLI)' $(filter eval/%,$(LIBRARY))
	@echo "layers: every include points the right way"

FORMATTED = $(shell find engine models quant eval data tests -name '*.h' -o -name '*.cpp')
format:
	$(CLANG_FORMAT) -i $(FORMATTED)
format-check:
	$(CLANG_FORMAT) --dry-run -Werror $(FORMATTED)

install: all $(BUILD)/bcq.pc
	install -d $(DESTDIR)$(PREFIX)/bin
	install $(filter-out %/demo %/bench,$(binaries)) $(DESTDIR)$(PREFIX)/bin
	install -d $(DESTDIR)$(PREFIX)/share/bcq/tables
	install -m 644 eval/tables/*.json $(DESTDIR)$(PREFIX)/share/bcq/tables
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	@for program in $(filter-out demo bench,$(PROGRAMS)); do \
	  $(BUILD)/bin/$$program --man | gzip -9n > $(DESTDIR)$(PREFIX)/share/man/man1/$$program.1.gz && \
	  $(BUILD)/bin/$$program --completion > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/$$program || exit 1; \
	done
	install -d $(DESTDIR)$(PREFIX)/lib/pkgconfig
	install -m 644 $(BUILD)/libbcq.a $(DESTDIR)$(PREFIX)/lib
	install -m 644 $(BUILD)/bcq.pc $(DESTDIR)$(PREFIX)/lib/pkgconfig
	@for header in $(HEADERS); do install -D -m 644 $$header $(DESTDIR)$(PREFIX)/include/bcq/$$header || exit 1; done

# A Debian package of it, for dpkg -i; the libraries it needs are those it is linked with.
deb: all
	rm -rf $(BUILD)/deb && mkdir -p $(BUILD)/deb/DEBIAN
	$(MAKE) install PREFIX=/usr DESTDIR=$(abspath $(BUILD))/deb BUILD=$(BUILD)
	@packages=$$(ldd $(BUILD)/bin/imagenet $(BUILD)/bin/perplexity | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | sort -u | \
	  while read -r file; do dpkg -S "$$(realpath $$file)" 2>/dev/null || dpkg -S "$$file"; done | cut -d: -f1 | sort -u | \
	  grep -v '^libopenblas' | paste -sd, | sed 's/,/, /g'); \
	printf '%s\n' 'Package: bcq' 'Version: 0.1.0' "Architecture: $$(dpkg --print-architecture)" \
	  'Maintainer: the authors of bcq <bcq@localhost>' 'Section: science' 'Priority: optional' \
	  "Depends: libopenblas0 | libopenblas0-pthread, $$packages" \
	  'Description: transformers quantized, compensated and evaluated on a CPU' > $(BUILD)/deb/DEBIAN/control
	dpkg-deb --root-owner-group --build $(BUILD)/deb $(BUILD)/bcq.deb

# The library for other programs: without command lines. Its headers are included by the names they have here.
HEADERS = $(filter-out engine/core/precompiled.h $(COMMAND:.cpp=.h) eval/tables/%.h eval/bench/%.h,$(wildcard engine/*/*.h models/*.h quant/*.h data/*.h data/*/*.h eval/*.h))
$(BUILD)/bcq.pc: FORCE
	@printf '%s\n' 'prefix=$(PREFIX)' 'Name: bcq' 'Description: transformers quantized, compensated and evaluated on a CPU' \
	  'Version: 0.1.0' 'Cflags: -std=c++20 -pthread -I$${prefix}/include/bcq' \
	  'Libs: -L$${prefix}/lib -lbcq -lopenblas -lpcre2-8 -lutf8proc -lz -pthread $(if $(filter turbo,$(JPEG)),-ljpeg) $(if $(filter 1,$(ONNX)),-lonnx_proto -lprotobuf) $(if $(filter 1,$(MPI)),-lmpi)' > $@

# The library in use: eval/examples, built against an installed copy and run on embedded models.
example: all
	$(MAKE) install PREFIX=$(abspath $(BUILD))/installed DESTDIR= BUILD=$(BUILD)
	sed -n 's/^Cflags: //p;s/^Libs: //p' $(BUILD)/installed/lib/pkgconfig/bcq.pc | sed 's|$${prefix}|$(abspath $(BUILD))/installed|g' \
	  | tr '\n' ' ' > $(BUILD)/example.flags
	for name in quantize perplexity classify; do \
	  $(CXX) -O1 eval/examples/$$name.cpp $$(cat $(BUILD)/example.flags) -o $(BUILD)/example-$$name || exit 1; \
	done
	$(BUILD)/example-quantize data/mini/opt data/mini/text/test.txt data/mini/text/calib.txt $(BUILD)/example-3bit
	$(BUILD)/example-perplexity $(BUILD)/example-3bit data/mini/text/test.txt
	$(BUILD)/example-classify data/mini/vit "$$(find data/mini/images/val -name '*.png' | sort | head -n 1)"

# For editors and clang tools.
compile_commands.json: Makefile $(LIBRARY) $(COMMAND) $(MAINS) $(TESTS)
	@{ echo '['; for f in $(LIBRARY) $(COMMAND) $(MAINS) $(TESTS); do \
	  printf '{"directory": "%s", "file": "%s", "command": "$(CXX) $(FLAGS) -DBCQ_VERSION=\\\\\\"$(VERSION)\\\\\\" -c %s"},\n' "$(CURDIR)" $$f $$f; done; } | sed '$$ s/,$$//' > $@
	@echo ']' >> $@
tidy: compile_commands.json
	clang-tidy -p . --quiet $(LIBRARY) $(COMMAND) $(MAINS)

clean:
	rm -rf $(BUILD)

help:
	@echo "make                all programs into $(BUILD)/bin: imagenet, perplexity, classify, report, generate, forward, table, demo, bench"
	@echo "make demo           quantize, compensate and measure the embedded models; $(BUILD)/demo.json, report.html"
	@echo "make table-vision   the paper's vision table; MODELS=DIR IMAGENET=DIR, or the embedded models"
	@echo "make table-language the language table; table-groups that of group sizes; table-billm that of BiLLM; tables all; MODELS=DIR CORPORA=DIR"
	@echo "make readme-tables  the tables of READMEs made anew from the records in eval/results"
	@echo "make test           the tests"
	@echo "make asan           the tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make asan-library   the same without tests of programs, as .ci/run does it"
	@echo "make fuzz           libFuzzer on everything that is read, TIME=60 seconds; needs CLANG=clang++-14"
	@echo "make chaos          programs killed and starved, KILLS=200 times"
	@echo "make tsan           the tests that use threads under ThreadSanitizer; needs CLANG=clang++-14"
	@echo "make bench          speed against the machine's own limit; its calibrations alone take 18 to 25 minutes, see bench --help"
	@echo "make bench-peers    speed against PyTorch, ONNX Runtime, OpenVINO and llama.cpp, in $(PEERS); PEERS_ARGS=..."
	@echo "make reference-env  the pinned Python environment the comparisons need, in $(VENV)"
	@echo "make parity         comparisons with the reference implementations at real shapes"
	@echo "make layers         fail on an include that points the wrong way"
	@echo "make format         clang-format everything"
	@echo "make install        programs, manual pages, completion, library, headers and bcq.pc into PREFIX ($(PREFIX))"
	@echo "make deb            the same as a Debian package, $(BUILD)/bcq.deb"
	@echo "make example        eval/examples against an installed copy of the library"
	@echo "make tidy           clang-tidy with the checks of .clang-tidy; compile_commands.json is made for it"
	@echo "make clean          remove $(BUILD)"
	@echo "Variables: CXX, CXXFLAGS, BUILD, PREFIX, JPEG (stb, or turbo: libjpeg-turbo, as Pillow), ONNX (0, or 1: imagenet --format onnx), MPI (0, or 1: mpirun). At run time BCQ_ISA=plain|avx2|avx-vnni|avx512|amx forces a kernel set."
