// Package why makes packets of what people say of them, and says in words what packets
// are and how two of them differ. It knows bytes and no daemon.
package why
