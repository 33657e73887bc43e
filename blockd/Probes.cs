namespace BlockServer.Blockd;

/// <summary>
/// What load balancers, supervisors and Prometheus ask: /healthz (the process works: restart it when not), /readyz (everything is in
/// service) and /metrics. The first two need no token and say nothing that helps anybody. Runs on the ordinary thread pool.
/// </summary>
internal static class Probes
{
    /// <summary>Answers /healthz and /readyz; false when the path is neither. Without a daemon it is healthy.</summary>
    public static async Task<bool> TryAnswerAsync(HttpContext context, string path, Daemon? daemon)
    {
        if (path is not ("/healthz" or "/readyz")) return false;
        string[] wrong = daemon is null ? [] : path == "/healthz" ? WhatIsSick(daemon) : WhatIsNotReady(daemon);
        context.Response.StatusCode = wrong.Length == 0 ? 200 : 503;
        context.Response.ContentType = "text/plain; charset=utf-8";
        await context.Response.WriteAsync(wrong.Length == 0 ? "ok" : string.Join('\n', wrong));
        return true;
    }

    /// <summary>Answers /metrics in the format that the caller takes.</summary>
    public static async Task WriteMetricsAsync(HttpContext context, Metrics metrics)
    {
        bool isOpenMetrics = context.Request.Headers.Accept.Any(a => a?.Contains("application/openmetrics-text", StringComparison.Ordinal) == true);
        string text = await metrics.WriteAsync(isOpenMetrics);
        context.Response.ContentType = isOpenMetrics ? MetricsWriter.OpenType : MetricsWriter.PlainType;
        await context.Response.WriteAsync(text);
    }

    private static string[] WhatIsSick(Daemon daemon) => daemon.LoopFailed.Task.IsCompleted ? ["loop"] : [];

    private static string[] WhatIsNotReady(Daemon daemon)
    {
        var wrong = new List<string>(WhatIsSick(daemon));
        string[] disk = [EventCatalogue.DiskFailed, EventCatalogue.DiskHung, EventCatalogue.DiskMissing, EventCatalogue.DiskRefused];
        IReadOnlyList<Core.Api.EventInfo> open = daemon.Events.List(onlyOpen: true);
        if (open.Any(e => disk.Contains(e.Code))) wrong.Add("disk");
        if (open.Any(e => e.Code == EventCatalogue.MetadataUnavailable)) wrong.Add("metadata");
        if (daemon.IsStopping) wrong.Add("stopping");
        return [.. wrong];
    }
}
