package pinfold_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"pinfold"
)

func example() {
	out, err := pinfold.Command("sh", "-c", "setsid sleep 1000 & echo built").Output()
	fmt.Printf("%s%v\n", out, err)

	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	cmd := pinfold.CommandContext(ctx, "sh", "-c", "sleep 1000 & sleep 1000")
	fmt.Println(cmd.Run(), "-", cmd.ProcessState)
}

// README.md shows the example and its output.
func TestReadme(t *testing.T) {
	pinfold.NeedPinfold(t)
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	block := func(language string) string {
		_, rest, found := strings.Cut(string(readme), "```"+language+"\n")
		text, _, ended := strings.Cut(rest, "```")
		if !found || !ended {
			t.Fatalf("README.md has no block of %s", language)
		}
		return text
	}
	indented := "\t" + strings.ReplaceAll(strings.TrimSpace(block("go")), "\n", "\n\t")
	indented = strings.ReplaceAll(indented, "\n\t\n", "\n\n")
	if !strings.Contains(string(source), indented+"\n}") {
		t.Error("the example of README.md is not the function example")
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = writer
	example()
	os.Stdout = stdout
	writer.Close()
	printed := make([]byte, 4096)
	n, _ := reader.Read(printed)
	if string(printed[:n]) != block("text") {
		t.Errorf("it prints %q", printed[:n])
	}
}
