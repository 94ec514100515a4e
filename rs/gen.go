package rs

//go:generate ./generate.sh
