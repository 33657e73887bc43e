namespace BlockServer.Blockd;

/// <summary>The support bundle in the admin API.</summary>
internal sealed class SupportRoutes(SupportBundle bundle)
{
    /// <summary>The handlers by the keys of <see cref="ApiRouteTable"/>.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers => new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
    {
        ["GET support"] = AnswerAsync,
    };

    // Whole before it is sent: what is sent is whole, and a fault in between is an answer of its own.
    private async Task AnswerAsync(ApiCall call)
    {
        using var made = new MemoryStream();
        await bundle.WriteAsync(made, call.Aborted);
        await call.SendAsync("application/gzip", async output => await output.WriteAsync(made.GetBuffer().AsMemory(0, (int)made.Length), call.Aborted), made.Length);
    }
}
