// Package growth lets tests say that work grows with what there is to do, and not with
// its square. It looks at the CPU time of one thread without garbage collection, of sizes
// that are far apart, so that a busy machine makes no difference.
//
// It is for tests only, and must never know what it measures.
//
// Hazards: what the work has other goroutines do is not counted, so they would make the
// square look cheap; and it switches the garbage collector off for the whole process, so
// tests that use it must not run in parallel.
package growth
