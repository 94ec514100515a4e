package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
)

// question is what an answer that comes bit by bit is asked for.
type question struct {
	Words []string `json:"words"`
	Fails bool     `json:"fails"`
	Waits bool     `json:"waits"`
}

// answerer says the words; gone is told what the request's handler ended with.
func answerer(gone chan<- error) func(context.Context, question, *Output) error {
	return func(ctx context.Context, q question, out *Output) (err error) {
		defer func() { gone <- err }()
		for _, w := range q.Words {
			if _, err := out.Write([]byte(w)); err != nil {
				return err
			}
			if err := out.Flush(); err != nil {
				return err
			}
		}
		switch {
		case q.Fails:
			return Refusal(ErrConflict, errors.New("not now"))
		case q.Waits:
			<-ctx.Done()
		}
		return nil
	}
}

func TestOutput(t *testing.T) {
	gone := make(chan error, 1)
	c := NewClient(serve(t, &fake{}, func(s *Server) { HandleOutput(s, "POST /v1/answer", "text/plain", answerer(gone)) }))
	defer c.Close()
	ask := func(ctx context.Context, q any) (string, error) {
		body, err := c.Stream(ctx, "POST", "/v1/answer", q)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(body)
		return string(b), errors.Join(err, body.Close())
	}
	for name, row := range map[string]struct {
		q    any
		want string
		is   error
		asks bool // the handler
	}{
		"all":                  {question{Words: []string{"a", "b"}}, "ab", nil, true},
		"nothing":              {question{}, "", nil, true},
		"an error":             {question{Fails: true}, "", ErrConflict, true},
		"an error halfway":     {question{Words: []string{"a"}, Fails: true}, "a", io.ErrUnexpectedEOF, true},
		"no such field":        {map[string]int{"other": 1}, "", ErrInvalid, false},
		"no question":          {nil, "", nil, true},
		"a field of the wrong": {map[string]int{"words": 1}, "", ErrInvalid, false},
	} {
		got, err := ask(t.Context(), row.q)
		if got != row.want || !errors.Is(err, row.is) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if row.asks {
			if err := <-gone; err != nil {
				t.Logf("%s: ended with %v", name, err)
			}
		}
	}

	// A client that goes away, once it has the first of the answer, ends the request.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body, err := c.Stream(ctx, "POST", "/v1/answer", question{Words: []string{"a"}, Waits: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	cancel()
	if got, err := io.ReadAll(body); err == nil {
		t.Errorf("%q without an error", got)
	}
	_ = body.Close() // which the end of the context did
	if err := <-gone; err != nil {
		t.Error(fmt.Errorf("ended with %w", err))
	}
}
