namespace BlockServer.Blockd;

/// <summary>A parameter of a query.</summary>
/// <param name="Name">As in the URL.</param>
/// <param name="Type">OpenAPI's word: boolean or integer.</param>
/// <param name="Help">What it does.</param>
internal sealed record ApiQuery(string Name, string Type, string Help);

/// <summary>One thing that the admin API can do.</summary>
/// <param name="Method">HTTP method.</param>
/// <param name="Template">Path behind <c>/v1/</c>; a part in braces is a parameter.</param>
/// <param name="Summary">What it does, for people.</param>
/// <param name="Status">The answer when it is done.</param>
/// <param name="Answer">The record that is answered, or null.</param>
/// <param name="Body">The record that is taken, or null.</param>
/// <param name="Queries">Parameters of the query.</param>
/// <param name="Codes">Refusals besides those that every call may get: status and stable code.</param>
internal sealed record ApiRoute(
    string Method, string Template, string Summary, int Status, Type? Answer, Type? Body, ApiQuery[] Queries, (int Status, string Code)[] Codes)
{
    private readonly string[] _parts = Template.Split('/');

    /// <summary>The least role that may use it: by default, viewers look and operators change.</summary>
    public ApiRole Role { get; init; } = Method == "GET" ? ApiRole.Viewer : ApiRole.Operator;

    /// <summary>What it reaches: by default the volume that it names, else the whole node.</summary>
    public ApiReach Reach { get; init; } = Template.StartsWith("volumes/{name}", StringComparison.Ordinal) ? ApiReach.Volume : ApiReach.Node;

    /// <summary>Method and template, as handlers are keyed.</summary>
    public string Key => Method + " " + Template;

    /// <summary>The path has this form.</summary>
    public bool Fits(IReadOnlyList<string> parts)
    {
        if (parts.Count != _parts.Length) return false;
        for (int i = 0; i < _parts.Length; i++)
        {
            if (_parts[i][0] != '{' && _parts[i] != parts[i]) return false;
        }

        return true;
    }
}

/// <summary>All that the admin API can do: calls are dispatched by this table, and docs/openapi.json is written from it.</summary>
internal static partial class ApiRouteTable
{
    /// <summary>Refusals that every call may get.</summary>
    public static readonly (int Status, string Code)[] CommonCodes =
    [
        (400, "bad-request"), (401, "no-token"), (401, "wrong-token"), (404, "no-such-resource"), (405, "wrong-method"),
        (403, "wrong-role"), (403, "whole-node"), (403, "denied"), (421, "wrong-host"), (429, "too-many-failures"), (500, "internal-error"), (503, "metadata-unavailable"),
    ];

    /// <summary>Refusals that every change may get besides.</summary>
    public static readonly (int Status, string Code)[] ChangeCodes =
        [(400, "invalid-json"), (400, "invalid-idempotency-key"), (403, "cross-origin"), (409, "idempotency-key-reused"), (409, "request-running"), (413, "body-too-large"), (415, "wrong-content-type")];

    private static readonly (int, string) s_noVolume = (404, "no-such-volume");
    private static readonly (int, string) s_badName = (400, "invalid-name");
    private static readonly (int, string) s_noTarget = (404, "no-such-target");
    private static readonly (int, string) s_ownTarget = (409, "own-target");
    private static readonly (int, string) s_meanwhile = (409, "changed-meanwhile");
    private static readonly (int, string) s_badQuery = (400, "invalid-query");
    private static readonly (int, string) s_coming = (409, "volume-initializing");
    private static readonly (int, string) s_image = (409, "volume-is-image");
    private static readonly (int, string) s_noTenant = (404, "no-such-tenant");
    private static readonly (int, string) s_quotaBytes = (409, "quota-bytes");
    private static readonly (int, string) s_quotaVolumes = (409, "quota-volumes");
    private static readonly (int, string) s_notYours = (403, "not-yours");
    private static readonly (int, string) s_noPolicy = (404, "no-such-policy");
    private static readonly (int, string) s_noSnapshot = (404, "no-such-snapshot");
    private static readonly (int, string) s_noRoom = (507, "capacity-exceeded");
    private static readonly (int, string) s_thinThick = (400, "thin-and-thick");
    private static readonly (int, string) s_noDisk = (503, "disk-unavailable");
    private static readonly ApiQuery s_usage = new("usage", "boolean", "With what each takes; reads all its metadata.");
    private static readonly ApiQuery s_mutual = new("mutual", "boolean", "The user by which we prove ourselves.");
    private static readonly ApiQuery s_force = new("force", "boolean", "Confirms what would be refused otherwise.");

    /// <summary>Every route. Each topic has a file of its own.</summary>
    public static readonly ApiRoute[] All =
    [
        .. NodeRoutes, .. VolumeRoutes, .. SnapshotRoutes, .. StreamRoutes, .. PolicyRoutes, .. DiskRoutes, .. TargetRoutes, .. TaskRoutes,
        .. AofRoutes, .. AccessRoutes,
    ];

    // No first part is a parameter.
    private static readonly ILookup<(int Parts, string First), ApiRoute> s_byForm = All.ToLookup(r => (r.Template.Count(c => c == '/') + 1, r.Template.Split('/')[0]));

    /// <summary>The route of a call; throws 404 or, with the methods that would do, 405.</summary>
    public static ApiRoute Find(ApiCall call)
    {
        foreach (ApiRoute route in s_byForm[(call.Parts.Count, call.Parts[0])])
        {
            if (route.Method == call.Method && route.Fits(call.Parts)) return route;
        }

        string[] others = [.. All.Where(r => r.Fits(call.Parts)).Select(r => r.Method)];
        throw others.Length == 0 ? new ApiException(404, "no-such-resource", "there is no such resource") : call.WrongMethod(string.Join(", ", others));
    }
}
