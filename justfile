# What people type. `just` lists the recipes.

_list:
    @just --list --unsorted

# Build the command: target/debug/pinfold
build:
    cargo build --features full

# All tests, or those of one test binary, or of one file: just test cli filters::
test name="" filter="":
    cargo test --all-features {{ if name == "" { "" } else { "--test " + name } }} {{ filter }}

# Everything that must pass before a change is taken
ci:
    bash .ci/run

# Formatting and clippy
lint:
    cargo fmt --check
    cargo clippy --all-targets --all-features -- -D warnings

# What has changed in the public interface since docs/public-api.txt; `just api --update` accepts it
api *arguments:
    scripts/public-api {{ arguments }}

# 2,000 runs of filters: no output may be lost
filters rounds="32":
    scripts/filters {{ rounds }}

# Ways to escape, against pinfold and its peers: writes docs/escapes.md (as root)
escapes *arguments:
    scripts/escapes {{ arguments }}

# Kill supervisors, guards and process groups at random instants
faults *arguments:
    scripts/faults {{ arguments }}

# Tests in a virtual machine; a row of `scripts/vm-test --list`, or a part of its name: just vm 6.12
vm row:
    scripts/vm-test {{ row }}

# Measure pinfold next to its peers
bench *arguments:
    scripts/bench {{ arguments }}

# Run the checks of scripts/hooks before each commit
hooks:
    git config core.hooksPath scripts/hooks
