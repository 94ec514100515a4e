#!/bin/sh
# Compiles toa.c, decap.c and uoa.c with bpf2go and puts the objects into this folder;
# `generate.sh -check` instead fails if the committed ones differ. As with
# dataplane/steer/generate.sh the bytes depend on the sources, this script and the
# version of clang, which is therefore part of the compiler's name.
set -eu
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
: "${BPF2GO_CC:=clang-14}"
export BPF2GO_CC
for name in toa decap uoa; do
	go run github.com/cilium/ebpf/cmd/bpf2go -go-package rs -target bpfel,bpfeb \
		-cflags "-O2 -mcpu=v2 -Wall -Wextra -Werror -Wno-sign-compare" \
		-no-global-types -output-dir "$out" $name $name.c
done
if [ "${1-}" = -check ]; then
	for f in "$out"/*; do
		cmp "$(basename "$f")" "$f" || {
			echo "rs/$(basename "$f") is not what its source compiles to: run go generate ./rs" >&2
			exit 1
		}
	done
	echo "rs: the committed objects are what their sources compile to"
else
	mv "$out"/* .
	sha256sum toa.c decap.c uoa.c abi.h maps.h option.h ../dataplane/steer/abi.h generate.sh >sources.sha256
fi
