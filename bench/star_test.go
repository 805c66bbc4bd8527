package main

import (
	"strings"
	"testing"
	"time"

	"bytes"
)

func TestStar_MeasuresAll(t *testing.T) {
	r := &run{peers: []peer{gridPeer()}, rounds: 1, round: time.Millisecond}
	if err := r.starOf(20, 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for _, row := range starRows {
		f := r.report.figure("star", "20-"+row[0], "grid")
		if f == nil || f.Value < 0 || f.Value == 0 && row[0] != "idle-cpu" {
			t.Errorf("%s: %v", row[0], f)
		}
	}
	if n := len(r.report.Figures); n != len(starRows) {
		t.Errorf("%d figures, %d rows", n, len(starRows))
	}
	var b bytes.Buffer
	r.report.writeStar(&b)
	if s := b.String(); !strings.HasPrefix(s, "| links | 20 |\n") || strings.Contains(s, "–") {
		t.Error(s)
	}
}

func TestStar_ProcessThatFailsSaysWhy(t *testing.T) {
	c, err := startChild("hub", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, err := c.ask(starAsk{Do: "dance"}); err == nil || err.Error() != `the hub can't "dance"` {
		t.Error(err)
	}
	if _, err := startChild("hub", "nowhere"); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Error(err)
	}
}
