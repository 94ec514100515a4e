// Package browser drives a headless Chromium, for tests of pages: it opens them, presses
// and types as a person does, runs script in them, takes pictures, and keeps what the
// browser complained of.
//
// It speaks the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)
// over two pipes, messages of JSON with a zero byte behind each, so that no port is
// open and the browser can live in a network namespace.
package browser
