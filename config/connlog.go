package config

import (
	"strconv"
	"strings"
)

// OneIn is how many flows there are to one that is meant: 0 for none at all, 1 for every
// one.
type OneIn uint32

const (
	wantOneIn   = "off, full or 1/N with N from 1 to 1000000"
	wantLogFile = "a path from / on"
	maxOneIn    = 1_000_000
)

func parseOneIn(s string) (OneIn, error) {
	switch s {
	case "off":
		return 0, nil
	case "full":
		return 1, nil
	}
	if digits, ok := strings.CutPrefix(s, "1/"); ok {
		if n, err := parseInt(digits, 1, maxOneIn); err == nil {
			return OneIn(n), nil
		}
	}
	return 0, expected(wantOneIn, s, didYouMean(s, names{"off", "full"}))
}

// String returns the value as the configuration writes it.
func (n OneIn) String() string {
	switch n {
	case 0:
		return "off"
	case 1:
		return "full"
	}
	return "1/" + strconv.FormatUint(uint64(n), 10)
}

// parseLogFile reads the name of a file that is to be written.
func parseLogFile(s string) (string, error) {
	if !strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") || strings.ContainsRune(s, 0) {
		return "", expected(wantLogFile, s, "")
	}
	return s, nil
}

// connectionLogFields are keys of the file.
var connectionLogFields = []field[Config]{
	plain("connection_log_file", text, wantLogFile, func(c *Config) *string { return &c.ConnectionLogFile },
		parseLogFile, strconv.Quote,
		"Where connections are logged of services whose connection_log is not off, a line\n"+
			"of JSON for each. Moved away by others, it is begun anew."),
	integer("connection_log_size", 0, 1<<20, func(c *Config) *int { return &c.ConnectionLogSize },
		"MiB at which the file is set aside and a new one begun; 0: never."),
	integer("connection_log_keep", 0, 1000, func(c *Config) *int { return &c.ConnectionLogKeep },
		"How many files that were set aside are kept: FILE.1 is the latest."),
}
