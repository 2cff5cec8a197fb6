-- Prints wrk's summary as one line of JSON, for measure.py. The scripts that make requests load this file too.
function done(summary, latency, requests)
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout + summary.errors.status
  io.write(string.format(
    'wrk-summary {"requests": %d, "errors": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "max_us": %d}\n',
    summary.requests, errors, summary.duration, latency:percentile(50), latency:percentile(99), latency.max))
end
