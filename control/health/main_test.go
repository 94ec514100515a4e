package health

import (
	"io"
	"log"
	"testing"

	"go.uber.org/goleak"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testbed.Guard(m)) }

func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }
