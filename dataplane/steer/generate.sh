#!/bin/sh
# Compiles steer.c with bpf2go and puts the objects into this folder;
# `generate.sh -check` instead fails if the committed ones differ. The bytes
# depend on steer.c, abi.h, this script and the version of clang, which is
# therefore part of the compiler's name; not on headers or on paths.
set -eu
cd "$(dirname "$0")"
files="steer_bpfel.o steer_bpfeb.o steer_bpfel.go steer_bpfeb.go"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
: "${BPF2GO_CC:=clang-14}"
export BPF2GO_CC
go run github.com/cilium/ebpf/cmd/bpf2go -go-package steer -target bpfel,bpfeb \
	-cflags "-O2 -mcpu=v2 -Wall -Wextra -Werror -Wno-sign-compare" \
	-no-global-types -output-dir "$out" steer steer.c
if [ "${1-}" = -check ]; then
	for f in $files; do
		cmp "$f" "$out/$f" || {
			echo "dataplane/steer/$f is not what steer.c compiles to: run go generate ./dataplane/steer" >&2
			exit 1
		}
	done
	echo "dataplane/steer: the committed objects are what steer.c compiles to"
else
	for f in $files; do mv "$out/$f" "$f"; done
	sha256sum steer.c abi.h generate.sh >sources.sha256
fi
