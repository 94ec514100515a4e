// Package sdnotify tells a service manager how this process is, as sd_notify(3)
// has it: one datagram to the socket that NOTIFY_SOCKET names.
//
// It must never know what the program does, nor when it is ready: callers say so.
//
// Hazards. NOTIFY_SOCKET is inherited by children, which could speak for this
// process unless the unit has NotifyAccess=main, systemd's default for Type=notify.
// A manager that does not read its socket holds the caller up for a second; call it
// from nothing that packets wait for.
package sdnotify
