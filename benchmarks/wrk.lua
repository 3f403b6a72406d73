-- Sends what the arguments say (method, bytes of body, paths in turn), and prints what was measured as a line of JSON.

function init(args)
  wrk.method = args[1]
  if args[2] ~= "0" then
    wrk.body = string.rep("x", tonumber(args[2]))
    wrk.headers["Content-Type"] = "application/octet-stream"
  end
  local requests = {}
  for number = 3, #args do
    requests[number - 2] = wrk.format(nil, args[number])
  end
  if #requests > 1 then
    local turn = 0
    request = function()
      turn = turn % #requests + 1
      return requests[turn]
    end
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'JSON {"requests": %d, "microseconds": %d, "p50": %d, "p90": %d, "p99": %d, "max": %d, ' ..
    '"errors": {"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}}\n',
    summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max,
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
