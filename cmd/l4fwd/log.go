package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/l4fwd/l4fwd/config"
)

var logLevels = map[config.LogLevel]zapcore.Level{
	config.LogDebug: zap.DebugLevel, config.LogInfo: zap.InfoLevel,
	config.LogWarn: zap.WarnLevel, config.LogError: zap.ErrorLevel,
}

// newLogger logs to out: for people on a console, one JSON object a line for
// machines. The level may be changed later.
func newLogger(cfg *config.Config, out io.Writer) (*zap.Logger, zap.AtomicLevel, error) {
	least, ok := logLevels[cfg.LogLevel]
	level := zap.NewAtomicLevelAt(least)
	if !ok {
		return nil, level, fmt.Errorf("log level %s", cfg.LogLevel)
	}
	sink := zapcore.Lock(zapcore.AddSync(out))
	if cfg.LogFormat == config.LogJSON {
		e := zap.NewProductionEncoderConfig()
		e.TimeKey, e.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
		return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(e), sink, level)), level, nil
	}
	e := zap.NewDevelopmentEncoderConfig()
	e.ConsoleSeparator = "  "
	e.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
	e.EncodeDuration = func(d time.Duration, enc zapcore.PrimitiveArrayEncoder) { enc.AppendString(d.String()) }
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		e.EncodeLevel = zapcore.CapitalColorLevelEncoder
	}
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(e), sink, level)), level, nil
}

// outliveReader lets the process go on when whoever reads its log is gone (tee, journald):
// Go would end it by SIGPIPE, with nothing put back. The signal is caught, since commands
// that are started would inherit that it is ignored.
func outliveReader() { signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE) }
