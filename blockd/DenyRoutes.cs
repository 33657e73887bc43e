using BlockServer.Cluster;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>The admin API's black list.</summary>
internal sealed class DenyRoutes(Daemon daemon)
{
    /// <summary>The handlers by the keys of <see cref="ApiRouteTable"/>.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers => new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
    {
        ["GET denied"] = c => c.AnswerAsync(new DeniedList([.. daemon.DenyList.List().Select(d => Describe(d))]), ApiJson.Default.DeniedList),
        ["POST denied"] = DenyAsync,
        ["DELETE denied"] = AllowAsync,
    };

    private static DeniedInfo Describe(DenyRecord d, int? cut = null) => new(d.Kind, d.Value, d.Reason, d.CreatedAt, cut);

    private async Task DenyAsync(ApiCall call)
    {
        Deny r = await call.ReadAsync(ApiJson.Default.Deny);
        string value = Normal(r.Kind, r.Value);
        call.About($"{r.Kind} {value}");
        if (r.Kind == "token" && daemon.Tokens.Find(value) is null)
            throw new ApiException(404, "no-such-token", $"there is no token '{value}'; pfcli list_token shows their ids", "value");
        bool isOwn = r.Kind == "token" ? value == call.Caller.Id
            : r.Kind == "address" && call.Address is { } own && System.Net.IPNetwork.Parse(value).Contains(own.IsIPv4MappedToIPv6 ? own.MapToIPv4() : own);
        if (isOwn) throw new ApiException(409, "would-deny-you", "this call would be denied by it; call from elsewhere, or with another token", "value");
        var record = new DenyRecord(r.Kind, value, r.Reason, daemon.Clock.GetUtcNow());
        if (await daemon.DenyList.DenyAsync(record) is { } fault) throw AdminRoutes.Refusal(fault);
        await call.AnswerAsync(Describe(record, daemon.EnforceDenied()), ApiJson.Default.DeniedInfo, 201);
    }

    private async Task AllowAsync(ApiCall call)
    {
        string kind = call.Query("kind") ?? throw new ApiException(400, "invalid-kind", KindHelp, "kind");
        string value = call.Query("value") ?? throw new ApiException(400, "invalid-value", "value says who is allowed again", "value");
        value = Normal(kind, value);
        call.About($"{kind} {value}");
        if (await daemon.DenyList.AllowAsync(kind, value) is { } fault) throw AdminRoutes.Refusal(fault);
        daemon.EnforceDenied();
        await call.AnswerNothingAsync();
    }

    private const string KindHelp = "a kind is initiator, address or token";

    private static string Normal(string kind, string value) => kind switch
    {
        "initiator" => IscsiRules.NormalizePattern(value) ?? throw new ApiException(
            400, "invalid-value", $"'{value}' is no initiator name; write a whole name such as iqn.1993-08.org.debian:01:abc, or a pattern with * and ?", "value"),
        "address" => IscsiRules.NormalizeNetwork(value) ?? throw new ApiException(
            400, "invalid-value", $"'{value}' is no address and no network; write 10.0.0.7, 10.0.0.0/24 or fd00::/64 (no bits behind the prefix)", "value"),
        "token" => value.Length is > 0 and <= 64 ? value : throw new ApiException(400, "invalid-value", "name a token by its id", "value"),
        _ => throw new ApiException(400, "invalid-kind", KindHelp, "kind"),
    };
}
