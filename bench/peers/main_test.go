package peers

import (
	"testing"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }
