package demo

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Ports of the virtual services.
const (
	httpPort = 80
	linePort = 6379
)

// nginxConf returns a configuration that serves the files in www, each
// connection at rate bytes/s: in small pieces, so that a stall shows.
func nginxConf(dir, www string, rate int) string {
	return strings.NewReplacer("DIR", dir, "WWW", www, "RATE", fmt.Sprint(rate), "PIECE", fmt.Sprint(max(512, rate/2))).Replace(`
daemon off;
worker_processes 1;
user root;
pid DIR/nginx.pid;
error_log DIR/nginx-error.log;
events { worker_connections 4096; }
http {
	access_log off;
	sendfile on;
	client_body_temp_path DIR/tmp; proxy_temp_path DIR/tmp; fastcgi_temp_path DIR/tmp;
	uwsgi_temp_path DIR/tmp; scgi_temp_path DIR/tmp;
	keepalive_timeout 600s;
	send_timeout 600s;
	server {
		listen 80 backlog=4096;
		root WWW;
		location = /short { return 200 "ok\n"; }
		location / { limit_rate RATE; sendfile_max_chunk PIECE; }
	}
}
`)
}

// writeNginx writes the configuration below dir and returns nginx's arguments.
func writeNginx(dir, www string, rate int) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte(nginxConf(dir, www, rate)), 0o644); err != nil {
		return nil, err
	}
	return []string{"/usr/sbin/nginx", "-c", conf}, nil
}

// redisArgs returns the arguments of a Redis server that keeps nothing.
func redisArgs() []string {
	return []string{
		"/usr/bin/redis-server", "--port", fmt.Sprint(linePort), "--bind", "0.0.0.0", "--protected-mode", "no",
		"--save", "", "--appendonly", "no", "--timeout", "0", "--tcp-keepalive", "0", "--maxclients", "4096",
	}
}
