package pinfold

import (
	"io"
	"os"
	"sync"
	"syscall"
)

const (
	// How many bytes of each output pinfold sends before the program reads them.
	credit = 256 * 1024
	// The largest piece of a standard input in one message.
	inputPiece = 256 * 1024
)

// An output holds what a command has written, until the program reads it. pinfold sends no more than an output may hold.
// So a command whose output is not read waits when its pipe is full, and the other commands continue.
type output struct {
	mu     sync.Mutex
	ready  *sync.Cond
	data   []byte
	ended  error
	closed bool
	// grant lets pinfold send this many more bytes. stop closes the stream.
	grant func(bytes int)
	stop  func()
}

func newOutput() *output {
	o := &output{}
	o.ready = sync.NewCond(&o.mu)
	return o
}

// Read returns io.EOF when every process of the command has closed the stream, or is gone.
func (o *output) Read(p []byte) (int, error) {
	o.mu.Lock()
	for len(o.data) == 0 && o.ended == nil && !o.closed && len(p) > 0 {
		o.ready.Wait()
	}
	if o.closed {
		o.mu.Unlock()
		return 0, os.ErrClosed
	}
	if len(o.data) == 0 && len(p) > 0 {
		defer o.mu.Unlock()
		return 0, o.ended
	}
	n := copy(p, o.data)
	o.data = o.data[n:]
	grant := o.grant
	if o.ended != nil {
		grant = nil
	}
	o.mu.Unlock()
	if grant != nil && n > 0 {
		grant(n)
	}
	return n, nil
}

// Close closes the stream: the next write of the command fails with EPIPE.
func (o *output) Close() error {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return os.ErrClosed
	}
	o.closed, o.data = true, nil
	stop := o.stop
	o.ready.Broadcast()
	o.mu.Unlock()
	if stop != nil {
		stop()
	}
	return nil
}

func (o *output) add(data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.data = append(o.data, data...)
		o.ready.Broadcast()
	}
}

func (o *output) end(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended == nil {
		o.ended = err
		o.ready.Broadcast()
	}
}

// An input sends bytes to a command. Write returns when they are in the pipe of the command.
type input struct {
	writing sync.Mutex
	mu      sync.Mutex
	closed  bool
	// Sends a request for the command; nil before its start.
	send func(r request, answer func(event)) error
}

// sender returns the function that sends, or nil where nothing can be sent.
func (i *input) sender() func(request, func(event)) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	return i.send
}

// start connects the input to a command that has been started.
func (i *input) start(send func(request, func(event)) error) {
	i.mu.Lock()
	i.send = send
	closed := i.closed
	i.mu.Unlock()
	if closed {
		send(request{"op": "close", "stream": "stdin"}, nil)
	}
}

func (i *input) Write(p []byte) (written int, err error) {
	i.writing.Lock()
	defer i.writing.Unlock()
	for written < len(p) {
		send := i.sender()
		if send == nil {
			return written, os.ErrClosed
		}
		piece := p[written:]
		if len(piece) > inputPiece {
			piece = piece[:inputPiece]
		}
		answers := make(chan event, 1)
		r := request{"op": "stdin", "base64": piece}
		if err := send(r, func(answer event) { answers <- answer }); err != nil {
			return written, err
		}
		if answer := <-answers; answer.Event == "error" {
			return written, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
		}
		written += len(piece)
	}
	return written, nil
}

// Close ends the input of the command after everything that was written.
func (i *input) Close() error {
	send := i.sender()
	i.mu.Lock()
	closed := i.closed
	i.closed = true
	i.mu.Unlock()
	if closed {
		return os.ErrClosed
	}
	if send != nil {
		send(request{"op": "close", "stream": "stdin"}, nil)
	}
	return nil
}

var (
	_ io.ReadCloser  = (*output)(nil)
	_ io.WriteCloser = (*input)(nil)
)
