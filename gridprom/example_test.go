package gridprom_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gridrpc/grid"
	"github.com/gridrpc/grid/gridprom"
)

func Example() {
	calls := gridprom.NewInterceptor()
	m, err := grid.NewManager(context.Background(), grid.ManagerOptions{
		Local:             "http://node1:9000",
		Hosts:             []string{"http://node1:9000", "http://node2:9000"},
		AuthFn:            func() string { return "secret" },
		AuthToken:         func(string) error { return nil },
		HandlerNames:      map[grid.HandlerID]string{1: "lock"},
		CallInterceptors:  []grid.CallInterceptor{calls},
		ServeInterceptors: []grid.ServeInterceptor{calls},
		BlockConnect:      make(chan struct{}), // for this example, there is no node2
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = m.Close() }()
	reg := prometheus.NewRegistry()
	reg.MustRegister(calls, gridprom.NewCollector(m))
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))

	// Who is not there?
	_, _ = m.Connection("http://node2:9000").SingleRequest(context.Background(), 1, nil)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, line := range regexp.MustCompile(`(?m)^grid_.*(unconnected|disconnected).*\n`).FindAll(w.Body.Bytes(), -1) {
		_, _ = os.Stdout.Write(line)
	}
	// Output:
	// grid_connection_state{remote="http://node2:9000",state="unconnected"} 1
	// grid_handler_results_total{handler="lock",kind="request",result="disconnected",side="call"} 1
}
