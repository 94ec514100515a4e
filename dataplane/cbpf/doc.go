// Package cbpf runs classic BPF programs, the language of tcpdump's filters, over
// frames in the memory of a worker: without an allocation, and in a time that the
// program's length bounds, since classic BPF cannot jump back.
//
// It must never know where a program comes from or what it is for. The instructions
// are those of linux/filter.h (McCanne, Jacobson: The BSD Packet Filter, 1993), without
// the kernel's extensions. golang.org/x/net/bpf has an interpreter too, which decodes
// each instruction into an interface value and takes several times as long.
package cbpf
