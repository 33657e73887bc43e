using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using BlockServer.Cluster;

namespace BlockServer.Blockd;

/// <summary>Runs hooks as processes of the daemon's user. Only programs that lie in the folder of hooks are run: who may use the API
/// may choose among them and nothing else.</summary>
internal sealed class PolicyHooks(string directory, CancellationToken stop) : IPolicyHooks
{
    // When the daemon stops: for what lets users go on.
    private const int StopSeconds = 10;

    /// <inheritdoc/>
    public async Task<string?> RunAsync(PolicyRecord policy, string hook, string moment, string snapshot, IReadOnlyList<string> volumes)
    {
        string path = Path.Combine(directory, hook);
        var start = new ProcessStartInfo(path, [moment, policy.Name, snapshot, .. volumes])
        {
            WorkingDirectory = directory, RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true,
        };
        try
        {
            using Process process = Process.Start(start) ?? throw new Win32Exception();
            process.StandardInput.Close();
            // Read away, or it would wait for somebody to read; what it says is its own affair.
            Task drained = Task.WhenAll(process.StandardOutput.BaseStream.CopyToAsync(Stream.Null), process.StandardError.BaseStream.CopyToAsync(Stream.Null));
            bool isPost = moment == "post";
            int seconds = isPost && stop.IsCancellationRequested ? Math.Min(StopSeconds, policy.HookSeconds) : policy.HookSeconds;
            using var limit = CancellationTokenSource.CreateLinkedTokenSource(isPost ? default : stop);
            limit.CancelAfter(TimeSpan.FromSeconds(seconds));
            try
            {
                await process.WaitForExitAsync(limit.Token);
            }
            catch (OperationCanceledException)
            {
                process.Kill(entireProcessTree: true);
                return string.Create(CultureInfo.InvariantCulture, $"{path} took longer than {seconds} s, or the daemon stops, and was ended");
            }

            _ = drained.Exception; // a child that outlives it may keep the pipes open
            return process.ExitCode == 0 ? null : string.Create(CultureInfo.InvariantCulture, $"{path} ended with {process.ExitCode}");
        }
        catch (Exception e) when (e is Win32Exception or InvalidOperationException or IOException)
        {
            return $"{path} cannot be run: {e.Message}";
        }
    }
}
