package steer

//go:generate ./generate.sh
