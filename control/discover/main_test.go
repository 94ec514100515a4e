package discover

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testbed.Guard(m)) }
