using System.Text;
using BlockServer.Cluster;

namespace BlockServer.Blockd;

/// <summary>
/// The daemon as the reconciler sees it: what there is, from the directories; what is to be done, as requests of the admin API that
/// no network carries, so that every check and every side effect of a request by hand is there too. Both with the eyes and the rights of
/// <paramref name="caller"/>. Any thread.
/// </summary>
internal sealed class DeclaredWorld(Daemon daemon, IAdminRoutes routes, TargetRoutes targets, PolicyRoutes policies, ApiCaller caller) : IDeclaredWorld
{
    /// <inheritdoc/>
    public Task<CurrentState> ReadAsync() => Task.FromResult(new CurrentState(
        [.. daemon.Directory.List().Where(v => caller.Sees(v.Name)).Select(v => new CurrentVolume(v.Id, v.Name, v.SizeBytes, v.Export, v.Description, v.StoreId, v.Revision, v.PromisedBytes == 0))],
        [.. targets.List(Look).Where(t => t.Kind == "configured")], policies.List(Look)));

    private ApiCall Look => new(new DefaultHttpContext(), [], caller);

    /// <inheritdoc/>
    public async Task<string?> SendAsync(DeclaredStep step)
    {
        // Its last look may have been before: what is made now would be nobody's.
        if (caller.Tenant is { } tenant && daemon.Tenants.Find(tenant) is null) return $"tenant '{tenant}' is gone";
        string[] parts = step.Path.Split('?', 2);
        var context = new DefaultHttpContext();
        context.Request.Method = step.Method;
        context.Request.Path = "/v1/" + parts[0];
        if (parts.Length > 1) context.Request.QueryString = new QueryString("?" + parts[1]);
        if (step.Body is not null)
        {
            context.Request.ContentType = "application/json";
            context.Request.Body = new MemoryStream(Encoding.UTF8.GetBytes(step.Body));
        }

        using var answer = new MemoryStream();
        context.Response.Body = answer;
        try
        {
            await routes.HandleAsync(new ApiCall(context, parts[0].Split('/'), caller));
            return null;
        }
        catch (ApiException e)
        {
            return $"{e.Message} [{e.Code}]";
        }
        catch (BlockServer.Core.MetaException e)
        {
            return e.Message;
        }
    }
}
